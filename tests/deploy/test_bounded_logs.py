"""Logs of the scripts in deploy/: they are complete, private, and never larger than promised."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.gateways import needs_nginx
from tests.support.machines import ROOT, Machine, free_port, switch_off
from tests.support.waiting import TIMEOUT, wait_until

MIB = 2**20
ADDRESS = "127.0.0.2"


def sizes(log: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in log.parent.glob(f"{log.name}*")}


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    start = f"import sys; sys.path.insert(0, {str(ROOT / 'deploy')!r})\n"
    return subprocess.run(
        [sys.executable, "-c", start + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )


def test_output_goes_to_a_private_log_that_is_rotated_and_loses_no_line(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from bounded_logs import keep_output\n"
        "keep_output(Path('out.log'), 1)\n"
        "os.execv('/bin/sh', ['sh', '-c', 'seq 1000001 1500000; echo end >&2'])\n"
    )
    result = run(code, tmp_path)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)
    log = tmp_path / "out.log"
    # run() has returned, so the helper has closed its own output: it has written everything.
    found = sizes(log)
    assert found.keys() == {"out.log", *(f"out.log.{number}" for number in range(1, 4))}
    assert max(found.values()) < MIB
    assert {oct(path.stat().st_mode)[-3:] for path in tmp_path.iterdir()} == {"600"}
    parts = [(tmp_path / f"out.log{number}").read_text() for number in (".3", ".2", ".1", "")]
    lines = "".join(parts).splitlines()
    assert lines == [str(number) for number in range(1000001, 1500001)] + ["end"]


def test_four_older_files_are_kept(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from bounded_logs import keep_output\n"
        "keep_output(Path('out.log'), 1)\n"
        "os.execv('/bin/sh', ['sh', '-c', 'seq 1000001 3000000'])\n"
    )
    run(code, tmp_path)
    found = sizes(tmp_path / "out.log")
    assert len(found) == 5
    assert sum(found.values()) < 5 * MIB
    assert (tmp_path / "out.log").read_text().endswith("\n3000000\n")


def test_a_log_that_cannot_be_written_is_named_before_anything_starts(tmp_path: Path) -> None:
    result = subprocess.run(
        [ROOT / "deploy" / "start-superlink", "--insecure", "--log", tmp_path / "no" / "a.log"],
        env={"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: the log {tmp_path}/no/a.log cannot be written ")
    assert not (tmp_path / ".fixbn").exists()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, port)) == 0


def refuse(machine: Machine, port: int, word: str, count: int) -> None:
    """Send requests for unknown paths of 7,000 characters."""
    context = ssl.create_default_context(cafile=machine.home / "certificates" / "ca.crt")
    url = f"https://{ADDRESS}:{port}/{word}/{'x' * 7000}"
    with httpx.Client(verify=context) as client:
        for _ in range(count):
            assert client.get(url).status_code in (403, 503)


@needs_nginx
@pytest.mark.slow
def test_an_attacker_cannot_fill_the_disk_with_refusals(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ADDRESS)
    machine.run(f"deploy/make-certificates certificates --host {ADDRESS}")
    port = free_port(ADDRESS)
    service = machine.start(
        f"deploy/start-gateway --certificates certificates --superlink {ADDRESS}:1 --host "
        f"{ADDRESS} --port {port} --log gateway.log --log-mib 1",
        "start.log",
    )
    log = machine.home / ".fixbn" / "gateway" / "refused.log"
    try:
        service.wait_until(lambda: listens(port), "the gateway listened")
        # Each file gets 1 MiB and a line that is in none of the others.
        for number in range(7):
            refuse(machine, port, f"attack-{number}", 160)
            wait_until(lambda: sizes(log).get(log.name, 0) < MIB, f"{log} was rotated")
        assert sizes(log).keys() == {log.name, *(f"{log.name}.{number}" for number in range(1, 5))}
        assert sum(sizes(log).values()) < 5 * 2 * MIB
        # nginx writes to the new file.
        refuse(machine, port, "after", 1)
        wait_until(lambda: "/after" in log.read_text(), "nginx wrote to the new log")
        assert service.stop() == 0
        machine.wait_until_off()
        # nginx's error log has a line of up to 2 KiB for each refusal too.
        found = sizes(machine.home / "gateway.log")
        assert len(found) > 1
        assert max(found.values()) < MIB
        assert service.output == ""
    finally:
        switch_off([machine])
