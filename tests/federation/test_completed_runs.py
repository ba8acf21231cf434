"""Real runs that complete: their bits do not depend on the backend, and every method works."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from fixbn_flwr.app.runs.reader import read_metrics
from fixbn_flwr.method.averaging import Kind, kind_of
from tests.support.machines import free_port
from tests.support.pages import ROOT as APP
from tests.support.real_runs import PROGRAMS, Outcome, Simulate, kill_processes_of
from tests.support.whole_app import rounds_of, run_app, size_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one_worker(simulate: Simulate) -> Outcome:
    return simulate({}, workers=1)


def test_the_same_seed_gives_the_same_bits_with_one_worker_or_two(
    one_worker: Outcome, simulate: Simulate
) -> None:
    two_workers = simulate({}, workers=2)
    assert (one_worker.failure, two_workers.failure) == (None, None), two_workers.log
    first, second = (run.folder / "final.safetensors" for run in (one_worker, two_workers))
    assert first.read_bytes() == second.read_bytes()


def test_the_in_memory_federation_of_the_fast_tests_gives_the_same_bits(
    one_worker: Outcome, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    in_memory = run_app(tmp_path, 4, {}, shuffle_seed=5)
    final = "final.safetensors"
    assert (in_memory / final).read_bytes() == (one_worker.folder / final).read_bytes()


def test_after_the_freeze_only_parameters_change(one_worker: Outcome, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    at_freeze = load_file(run_app(tmp_path, 4, {"num-server-rounds": 2}) / "final.safetensors")
    for name, array in load_file(one_worker.folder / "final.safetensors").items():
        moved = array.tobytes() != at_freeze[name].tobytes()
        assert moved == (kind_of(name) is Kind.PARAMETER), name


def test_a_run_logs_its_rounds_and_writes_its_files(one_worker: Outcome) -> None:
    assert one_worker.failure is None, one_worker.log
    assert f"Run folder: {one_worker.folder}" in one_worker.log
    rounds = read_metrics(one_worker.folder)
    assert [(r.round, str(r.phase)) for r in rounds] == [
        (1, "exploration"), (2, "exploration"), (3, "calibration")
    ]  # fmt: skip
    assert [(r.clients, r.dropped) for r in rounds] == [(2, 0)] * 3
    for r in rounds:
        assert r.train_loss is not None
        assert math.isfinite(r.train_loss)
        assert f"round {r.round}/3" in one_worker.log
    assert {path.name for path in one_worker.folder.iterdir()} == {
        "config.json", "metrics.jsonl", "final.safetensors", "summary.json", "curves.png",
        "checkpoints",
    }  # fmt: skip


def test_group_normalisation_trains_with_global_momentum(simulate: Simulate) -> None:
    run = simulate({"norm": "gn", "freeze-after": 1.0, "momentum": "global"}, workers=2)
    assert run.failure is None, run.log
    rounds = rounds_of(run.folder)
    assert [line["phase"] for line in rounds] == ["exploration"] * 3
    model = size_of(load_file(run.folder / "final.safetensors"))
    # Two clients receive the model, and from the second round on momentum of the same size.
    assert [line["bytes_sent"] for line in rounds] == [2 * model, 4 * model, 4 * model]
    assert [line["bytes_received"] for line in rounds] == [4 * model] * 3


def test_resnet20_trains_on_cifar10_with_momentum_reset(
    simulate: Simulate, shared_data: Path
) -> None:
    config: dict[str, Any] = {
        "task": "cifar10",
        "data-dir": str(shared_data),
        "num-server-rounds": 2,
        "freeze-after": 1,
        "momentum": "reset",
        "fraction-train": 1.0,
        "local-steps": 1,
    }
    run = simulate(config, clients=2, workers=2)
    assert run.failure is None, run.log
    final = load_file(run.folder / "final.safetensors")
    assert sum(kind_of(name) is Kind.STATISTIC for name in final) == 2 * 19
    rounds = rounds_of(run.folder)
    assert [line["phase"] for line in rounds] == ["exploration", "calibration"]
    assert [line["test_accuracy"] for line in rounds] == pytest.approx([0.1] * 2, abs=0.05)


def test_the_flwr_command_completes_with_flowers_default_clients(tmp_path: Path) -> None:
    """`flwr run` starts its own SuperLink, with 2 SuperNodes of 2 cores each."""
    home, runs = tmp_path / "home", tmp_path / "runs"
    environment = os.environ | {
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port("127.0.0.1")),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port("127.0.0.1")),
    }
    config = f'num-server-rounds=2 freeze-after=1 output-dir="{runs}"'
    command = ["flwr", "run", str(APP), "--stream", "--run-config", config]
    command += ["--federation-config", "init-args-num-cpus=2"]  # also where there is one core
    try:
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
    finally:
        kill_processes_of(home)
    (folder,) = runs.iterdir()
    assert [line["clients"] for line in rounds_of(folder)] == [2, 2], result.stdout
    assert (folder / "final.safetensors").is_file()
