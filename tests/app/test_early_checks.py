"""Mistakes that config and data tell are found before workers, Ray or a SuperLink start."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from fixbn_flwr.app.cli import cli
from fixbn_flwr.app.command_errors import run_commands
from fixbn_flwr.app.runs.lock import locked
from tests.support.command_line import everything_in, failing_command
from tests.support.whole_app import run_app


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four clients."""
    return run_app(tmp_path_factory.mktemp("runs"), 4, {"run-name": "done"})


@pytest.fixture
def here(elsewhere: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished and a stopped run, in which nothing can start."""

    def fail(*_: object) -> None:
        pytest.fail("a federation was started")

    monkeypatch.setattr("fixbn_flwr.app.local_run.local_grid", fail)
    monkeypatch.setattr("fixbn_flwr.app.local_superlink.local_superlink", fail)
    for name in ("done", "stopped"):
        shutil.copytree(finished, elsewhere / "runs" / name)
    (elsewhere / "runs" / "stopped" / "summary.json").unlink()
    newest = max((elsewhere / "runs" / "stopped" / "checkpoints").iterdir())
    newest.unlink()
    (elsewhere / "empty").mkdir()
    return elsewhere


LATE = {
    "output-dir": ("run output-dir=/proc/runs", r"output-dir = .*: cannot create a run folder in"),
    "taken": ("run run-name=done", r"done exists, and a run is never overwritten; choose another"),
    "finished": ("run resume=runs/done", r"all 3 rounds of .*/done are done; to add rounds, write"),
    "other config": (
        "run resume=runs/stopped batch-size=4",
        r"started with another config:\n  batch-size was 8 and is 4\n.*may-change",
    ),
    "other clients": (
        "run resume=runs/stopped --clients 5",
        r"stopped had 4 clients, and 5 are connected: .* Start as many as before, or write may",
    ),
    "not a run": ("run resume=empty", r"empty is not the folder of a run: .*; name a folder that"),
    "writers": (
        "run task=femnist data-dir={data} partition=natural --clients 51",
        r"the data has 50 natural clients, fewer than the 51 requested: use 50 clients or fewer",
    ),
    "no CIFAR-10": (
        "run task=cifar10 data-dir=empty",
        r"CIFAR-10 is incomplete in .*/empty, and the download failed .*: unpack cifar-10-python",
    ),
    "no Cityscapes": (
        "run task=cityscapes partition=iid data-dir=empty",
        r"(?i)cityscapes.*set.*data-dir",
    ),
    "no GPU": ("run device=cuda:99", r"this machine has \d+ CUDA devices .* Choose device="),
    "batch": (
        "run batch-size=500 --clients 4",
        r"client \d of 4 holds 287 images, fewer than one batch; use batch-size=287 or less, or",
    ),
    "batch without what is held out": (
        "run batch-size=250 validation-share=0.2 --clients 4",
        r"holds 2\d\d images besides those that it holds out, fewer than one batch; use batch-s",
    ),
    "clients": ("run --clients 1500", r"number of clients is 1500, .* choose 1 to 1437 clients"),
    "groups": ("run norm=gn7 freeze-after=1.0", r"'gn7', but a layer of this network has"),
    "state-dir": ("run state-dir=/proc/nothing", r"state-dir = .*cannot be written .*; name a wri"),
    "compare": ("compare run-name=done", r"done exists, and a run is never overwritten"),
    "not FixBN": (
        "compare freeze-after=1.0",
        r"the method of these settings is BN, not FixBN: com",
    ),
}


@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize("case", LATE)
def test_a_mistake_is_found_before_anything_starts(
    case: str, engine: str, here: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, message = LATE[case]
    before = everything_in(here)
    words = line.format(data=shared_data / "femnist-small").split()
    code, stderr = failing_command(capsys, *words, f"--engine={engine}")
    assert code == 1
    assert re.search(message, stderr, re.DOTALL), stderr
    assert everything_in(here) == before


def test_the_run_beside_fixbn_must_not_exist_either(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise `compare` would find it after the first of its two runs."""
    (here / "runs" / "mine-beside-BN" / "something").mkdir(parents=True)
    _, stderr = failing_command(capsys, "compare", "run-name=mine")
    assert "mine-beside-BN exists, and a run is never overwritten" in stderr


def test_a_run_that_is_running_is_not_resumed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(here / "runs" / "stopped"):
        _, stderr = failing_command(capsys, "run", "resume=runs/stopped", "--engine=ray")
    assert "another process is running the run in" in stderr
    assert "wait until it ends, or stop it" in stderr


class Started(Exception):
    """What would run a federation was called."""


@pytest.mark.parametrize("engine", ["local", "ray"])
@pytest.mark.parametrize("line", ["run run-name=new", "run resume=runs/stopped", "compare"])
def test_without_a_mistake_the_engine_starts_and_may_lock_the_run(
    line: str, engine: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> None:
        with locked(here / "runs" / "stopped"):
            raise Started

    for name in ("local_run.local_grid", "local_superlink.local_superlink"):
        monkeypatch.setattr(f"fixbn_flwr.app.{name}", start)
    before = everything_in(here)
    with pytest.raises(Started):
        run_commands(cli, [*line.split(), f"--engine={engine}"])
    assert everything_in(here) == before


def test_the_clients_of_a_resumed_run_are_those_it_had(here: Path) -> None:
    """The cases above rely on it."""
    assert json.loads((here / "runs" / "stopped" / "config.json").read_text())["clients"] == 4
