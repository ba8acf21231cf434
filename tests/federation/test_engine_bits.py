"""The engine's runs have the bits of `flwr run`, and it runs other projects' apps."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import ROOT
from tests.support.real_runs import PROGRAMS
from tests.support.waiting import TIMEOUT
from tests.support.whole_app import SMALL, rounds_of

pytestmark = pytest.mark.slow

CONFIG: dict[str, Any] = SMALL | {"num-server-rounds": 4, "fraction-train": 1.0}
CONFIG["validation-share"] = 0.1


def fixbn(*words: str, folder: Path) -> str:
    result = subprocess.run(
        [PROGRAMS / "fixbn", *words],
        cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def with_ray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run by `flwr run`."""
    return run_with("ray", 2, tmp_path_factory.mktemp("ray"))


def run_with(engine: str, workers: int, folder: Path) -> Path:
    words = [f"{key}={value}" for key, value in CONFIG.items()]
    options = [f"--engine={engine}", f"--workers={workers}", "--clients=7"]
    fixbn("run", *words, "output-dir=.", "run-name=run", *options, folder=folder)
    return folder / "run"


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_bits_are_those_of_ray(workers: int, with_ray: Path, tmp_path: Path) -> None:
    folder = run_with("local", workers, tmp_path)
    for name in ("final.safetensors", "best.safetensors"):
        assert (folder / name).read_bytes() == (with_ray / name).read_bytes()
    same = ("train_loss", "test_loss", "test_accuracy", "bytes_sent", "clients",
            "validation_loss", "validation_by_client")  # fmt: skip
    ours, rays = rounds_of(folder), rounds_of(with_ray)
    assert [[line[key] for key in same] for line in ours] == [
        [line[key] for key in same] for line in rays
    ]


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("example", ["message-api", "numpy-client", "own-start"])
def test_the_app_of_another_project(example: str, side: str, tmp_path: Path) -> None:
    app = ROOT / "examples" / example / side
    output = fixbn("simulate", str(app), "num-server-rounds=2", "--clients=4", folder=tmp_path)
    accuracies = re.findall(r"^Round (\d): test accuracy \S+$", output, re.MULTILINE)
    assert accuracies == ["0", "1", "2"], output


def test_run_simulation_replaces_flowers(tmp_path: Path) -> None:
    """In a script without a main guard, whose ClientApp is defined in it."""
    script = tmp_path / "script.py"
    example = ROOT / "examples" / "message-api" / "before"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(example)!r})
from fixbn_flwr.engine import run_simulation
from digits_example.client_app import app as client_app
from digits_example.server_app import app as server_app

print("started")
config = {{
    "num-server-rounds": 1, "fraction-train": 1.0, "fraction-evaluate": 0.5,
    "local-epochs": 1, "learning-rate": 0.05, "batch-size": 16,
}}
run_simulation(
    server_app=server_app, client_app=client_app, num_supernodes=3,
    backend_config={{"client_resources": {{"num_cpus": 1}}}}, run_config=config,
)
"""
    )
    result = subprocess.run(
        [PROGRAMS / "python", script],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=TIMEOUT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("started") == 1
    assert "Round 1: test accuracy" in result.stdout
