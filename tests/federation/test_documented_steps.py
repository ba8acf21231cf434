"""Runs the documented install and run steps, word for word, in a separate environment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machines import free_port
from tests.support.pages import ROOT
from tests.support.real_runs import kill_processes_of

pytestmark = pytest.mark.slow

EXAMPLES = ["message-api", "numpy-client", "own-start"]


def commands_of(page: str, heading: str) -> str:
    """Return the first block of shell commands below a heading."""
    text = (ROOT / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    found = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert found, heading
    return found[1]


class Shell:
    """A shell whose Python has this project's dependencies, but not this project.

    Nothing is downloaded: pip must find every dependency installed.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        environment = folder / "env"
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        python = environment / "bin" / "python"
        packages = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        # The environment has an old version; torch needs the newer one.
        subprocess.run([python, "-m", "pip", "uninstall", "-qy", "setuptools"], check=True)
        # The .pth files there are not read again, so that an editable install there has no effect.
        (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        for script in Path(sysconfig.get_path("scripts")).glob("fl*w*r*"):
            lines = script.read_text(encoding="utf-8").splitlines(keepends=True)
            copy = environment / "bin" / script.name
            copy.write_text("".join([f"#!{python}\n", *lines[1:]]), encoding="utf-8")
            copy.chmod(0o755)
        # The machine's own settings of pip are not those of a user.
        variables = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
        self._variables = variables | {
            "PIP_CONFIG_FILE": os.devnull,
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port("127.0.0.1")),
            "FLWR_LOCAL_CONTROL_API_PORT": str(free_port("127.0.0.1")),
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip's own way to say "no isolation"
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }

    def run(self, commands: str, folder: Path) -> str:
        result = subprocess.run(
            ["bash", "-euc", commands],
            cwd=folder, env=self._variables, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout
        return result.stdout


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    try:
        yield shell
    finally:
        kill_processes_of(shell.home)


def assert_trained(output: str, rounds: int) -> None:
    accuracies = re.findall(r"^Round (\d+): test accuracy \S+$", output, re.MULTILINE)
    assert [int(number) for number in accuracies] == list(range(rounds + 1)), output
    assert output.count(" is calibration") == rounds // 2, output


def test_the_steps_of_the_page_for_other_projects_work(shell: Shell, tmp_path: Path) -> None:
    project = shutil.copytree(ROOT / "examples" / "message-api" / "after", tmp_path / "project")
    commands = commands_of("docs/add-to-your-project.md", "Install")
    assert "path/to/fixbn-flwr" in commands
    output = shell.run(commands.replace("path/to/fixbn-flwr", shlex.quote(str(ROOT))), project)
    assert_trained(output, 6)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_steps_of_an_examples_readme_work(example: str, shell: Shell, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "examples", checkout / "examples")
    shell.run(f"pip install --editable {shlex.quote(str(ROOT))}", tmp_path)
    commands = commands_of(f"examples/{example}/README.md", "Run it")
    before, _, after = commands.partition("flwr run after")
    setup = "".join(line for line in before.splitlines(True) if not line.startswith("flwr run"))
    output = shell.run(f"{setup}flwr run after{after}", checkout)
    assert_trained(output, 6)
