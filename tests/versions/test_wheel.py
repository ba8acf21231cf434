"""The built wheel: bare it is the library alone; with its extras it runs without a clone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from tests.versions.__main__ import UV

pytestmark = pytest.mark.slow

_LIBRARY = """
import sys
import fixbn_flwr
assert not {"torch", "ray", "flwr"} & sys.modules.keys(), "import fixbn_flwr must stay quick"
from importlib import import_module
from importlib.util import find_spec
for name in ("matplotlib", "torchvision", "sklearn", "ray", "pyarrow", "torchmetrics"):
    assert find_spec(name) is None, name
for name in fixbn_flwr.__all__:
    getattr(fixbn_flwr, name)
for module in ("legacy", "testing", "persistence.resumable_start", "persistence.checkpoints"):
    import_module(f"fixbn_flwr.{module}")
print("imported")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


class Environment:
    """An environment outside of the clone, with the wheel."""

    def __init__(self, folder: Path, wheel: Path, extras: str) -> None:
        self.folder = folder
        self.programs = folder / "environment" / "bin"
        make = [UV, "venv", "--quiet", "--python", sys.executable, folder / "environment"]
        subprocess.run(make, check=True)
        subprocess.run(
            [UV, "pip", "install", "--quiet", "--system-certs",
             "--python", self.programs / "python", f"{wheel}{extras}"],
            check=True,
        )  # fmt: skip

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment["PATH"] = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [self.programs / command[0], *command[1:]],
            cwd=self.folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip


def test_the_bare_wheel_is_the_library_alone(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheel, "")
    imported = environment.run("python", "-c", _LIBRARY)
    assert imported.stdout == "imported\n", imported.stderr
    run = environment.run("fixbn", "run", "num-server-rounds=2")
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1, run.stderr
    assert 'pip install "fixbn-flwr[app]"' in run.stderr


def test_the_wheel_with_its_extras_runs_without_a_clone(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path, wheel, "[app,simulation]")
    for command in (
        ("fixbn", "run", "num-server-rounds=2"),
        ("fixbn", "run", "num-server-rounds=2", "--engine", "ray"),
        ("fixbn", "compare", "num-server-rounds=2"),
        ("python", "-m", "fixbn_flwr", "run", "num-server-rounds=2"),
    ):
        result = environment.run(*command)
        assert result.returncode == 0, (command, result.stdout, result.stderr)
        assert "round 2/2" in result.stdout, command
    assert environment.run("fixbn", "new", "my-app").returncode == 0
    result = environment.run("fixbn", "simulate", "my-app", "num-server-rounds=2")
    assert "round 2/2" in result.stdout, result.stderr
