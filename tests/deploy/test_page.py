"""Runs every command of deploy/README.md in order, on three machines with loopback addresses.

The page's addresses and its port are replaced; `scp` copies from one machine's folder to another's.
The installation is skipped: it would download gigabytes, and the Makefile's is used by every run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.gateways import needs_nginx
from tests.support.machines import ROOT, Machine, free_port, round_lines, switch_off
from tests.support.waiting import TIMEOUT, without_colours

PAGE = (ROOT / "deploy" / "README.md").read_text()
ADDRESSES = {"10.0.0.1": "127.0.0.2", "10.0.0.2": "127.0.0.3", "10.0.0.3": "127.0.0.4"}

SCP = """#!/bin/sh
# scp FILE HOST:fixbn-flwr/, where the checkout is the home of each machine
exec cp "$1" "{machines}/${{2%%:*}}/"
"""


@dataclass(frozen=True)
class Block:
    section: str
    where: str
    commands: str


def blocks() -> list[Block]:
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        for where, commands in re.findall(
            r"<!-- ([^>]*) -->\n```bash\n(.*?)```", section, re.DOTALL
        ):
            found.append(Block(title, where, commands))
    return found


def test_every_command_of_the_page_names_its_machine() -> None:
    assert len(blocks()) == PAGE.count("```bash")
    for block in blocks():
        assert block.where in {*ADDRESSES, "everywhere", "everywhere: install"}


def test_the_page_names_every_script_and_only_existing_files() -> None:
    named = set(re.findall(r"deploy/([\w.-]*\w)", PAGE))
    scripts = {
        path.name for path in (ROOT / "deploy").iterdir() if path.is_file() and not path.suffix
    }
    assert named == scripts | {"compose.yaml", "systemd"}
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "deploy" / link).exists(), link


@pytest.mark.parametrize("script", ["register", "revoke"])
def test_the_example_of_a_script_has_the_address_that_the_page_uses(script: str) -> None:
    example = rf"deploy/{script} \S+ --superlink (\S+) --ca certificates/ca.crt"
    (address,) = set(re.findall(example, PAGE))
    assert re.findall(example, (ROOT / "deploy" / script).read_text()) == [address]


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Machine]]:
    folder = tmp_path_factory.mktemp("machines")
    machines = {page: Machine(folder, address) for page, address in ADDRESSES.items()}
    programs = folder / "bin"
    programs.mkdir()
    (programs / "scp").write_text(SCP.format(machines=folder))
    (programs / "scp").chmod(0o755)
    for machine in machines.values():
        machine.environment["PATH"] = f"{programs}{os.pathsep}{machine.environment['PATH']}"
    yield machines
    switch_off(machines.values())


@pytest.mark.slow
@needs_nginx
def test_the_commands_complete_two_rounds_and_work_again_after_an_upgrade(
    machines: dict[str, Machine],
) -> None:
    port, control_port = str(free_port("127.0.0.2")), str(free_port("127.0.0.1"))
    outputs: dict[str, str] = {}

    def execute(section: str) -> None:
        outputs[section] = ""
        for block in blocks():
            if block.section.startswith(section) and not block.where.endswith("install"):
                commands = block.commands.replace("8000", port).replace("8001", control_port)
                commands = commands.replace("timeout 120 ", f"timeout {TIMEOUT:.0f} ")
                for page, address in ADDRESSES.items():
                    commands = commands.replace(page, address)
                for where in ADDRESSES if block.where == "everywhere" else [block.where]:
                    outputs[section] += machines[where].run(commands).stdout

    for number in range(2, 10):
        execute(f"{number}.")
    run = without_colours(outputs["7."])
    assert len(round_lines(run)) == 2, run
    assert "FixBN: round 2 is calibration" in run
    superlink, *nodes = machines.values()
    assert len(list((superlink.home / "runs").glob("*/final.safetensors"))) == 1
    # Each node trains on all of its own data, and on nothing else.
    assert re.search(r"client \d+ is hospital-a, with 720 images", run), run
    assert re.search(r"client \d+ is hospital-b, with 717 images", run), run
    for node in nodes:
        assert list((node.home / ".fixbn").glob("hospital-*/momentum/*/node-*/round-*.safetensors"))
    for machine in machines.values():
        machine.wait_until_off()

    execute("5.")  # upgraded
    assert outputs["5."].count("is already registered") == 2
    execute("6.")
    execute("11.")
    assert "hospital-b is revoked" in outputs["11."]
    assert "hospital-b-2 is registered" in outputs["11."]
    assert "valid for 127.0.0.2, localhost" in outputs["11."]
    execute("9.")
    for machine in machines.values():
        machine.wait_until_off()
