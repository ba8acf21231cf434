"""start_or_resume: a run that is stopped and resumed gives the bits of an uninterrupted run."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, Result
from torch import nn

from fixbn_flwr import FixBN
from fixbn_flwr.errors import CheckpointError, ConfigError
from fixbn_flwr.persistence.resumable_start import start_or_resume
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, training_app
from tests.support.small_federation import CLIENTS, batches, network

ROUNDS = 4


def run(folder: Path, *, run_id: int = 1, stop_after: int | None = None, **options: Any) -> Result:
    """Start or resume a run with new objects, as a restarted process does."""
    grid = SerializingGrid(
        training_app(network, batches),
        CLIENTS,
        run_id=run_id,
        run_config={"state-dir": str(folder / "state")},
    )

    def evaluate(server_round: int, _: ArrayRecord) -> MetricRecord:
        if server_round == stop_after:
            raise KeyboardInterrupt
        return MetricRecord({"round": server_round})

    strategy = FixBN(FedAdam(fraction_evaluate=0.0), freeze_after=2)
    arrays = initial_arrays(network())
    return start_or_resume(
        strategy, folder / "checkpoints", grid, arrays, ROUNDS, evaluate_fn=evaluate, **options
    )


def values(result: Result) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in result.arrays.items()}


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_stopped_run_gives_the_same_bits(tmp_path: Path, stop: int) -> None:
    uninterrupted = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_after=stop)
    resumed = run(tmp_path / "stopped", run_id=2)
    assert list(resumed.evaluate_metrics_serverapp) == [*range(stop - 1, ROUNDS + 1)]
    expected = values(uninterrupted)
    assert all(np.array_equal(array, expected[n]) for n, array in values(resumed).items())


class Remembering(FedAvg):
    """Keeps what it learns in mappings of several types."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.history: dict[str, list[int]] = defaultdict(list)
        self.last = MetricRecord()
        self.types: set[type] = set()

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        self.types = {type(self.history), type(self.last)}
        self.history[f"round {server_round}"].append(server_round)
        self.last = MetricRecord({"round": server_round})
        return super().aggregate_train(server_round, replies)


def test_a_resumed_strategy_has_attributes_of_the_same_types(tmp_path: Path) -> None:
    for rounds in (2, 4):
        strategy = Remembering()
        grid = SerializingGrid(training_app(network, batches), CLIENTS)
        arrays = initial_arrays(network())
        start_or_resume(FixBN(strategy, freeze_after=1), tmp_path, grid, arrays, rounds)
        assert strategy.types == {defaultdict, MetricRecord}
    assert strategy.history == {f"round {n}": [n] for n in range(1, 5)}
    assert strategy.last == MetricRecord({"round": 4})


def test_a_finished_run_returns_its_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uninterrupted = run(tmp_path)
    resumed = run(tmp_path, run_id=2)
    expected = values(uninterrupted)
    assert all(np.array_equal(array, expected[n]) for n, array in values(resumed).items())
    assert f"all {ROUNDS} rounds are done already" in caplog.text


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path, keep=1)
    (only,) = (tmp_path / "checkpoints").iterdir()
    assert only.name.startswith(f"round-{ROUNDS:06d}-")


def test_keeping_none_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keep=0 keeps no checkpoint.*keep 1 or more"):
        run(tmp_path, keep=0)


class WithoutEvaluation(FedAvg):
    """Has its own loop, which never calls evaluate_fn."""

    def start(  # type: ignore[override]
        self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int, **_: Any
    ) -> Result:
        return super().start(grid, initial_arrays, num_rounds)


def test_a_run_that_writes_no_checkpoint_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = FixBN(WithoutEvaluation(fraction_evaluate=0.0), freeze_after=1)
    grid = SerializingGrid(training_app(network, batches), CLIENTS)
    start_or_resume(strategy, tmp_path, grid, initial_arrays(network()), 2)
    assert "own start() must call evaluate_fn(round, arrays)" in caplog.text
    caplog.clear()
    run(tmp_path / "other")
    assert "evaluate_fn" not in caplog.text


def test_checkpoints_of_another_model_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    strategy = FixBN(FedAdam(fraction_evaluate=0.0), freeze_after=2)
    grid = SerializingGrid(training_app(network, batches), CLIENTS)
    with pytest.raises(CheckpointError, match="of another model than initial_arrays"):
        start_or_resume(
            strategy, tmp_path / "checkpoints", grid, initial_arrays(nn.BatchNorm1d(3)), ROUNDS
        )
