"""A run of the library that resumes from a checkpoint gives the bits of an uninterrupted run.

tests/app/server/test_resumed_run.py tests the app, whose process is killed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Strategy,
)
from torch import Tensor, nn

from fixbn_flwr import FixBN
from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.persistence.checkpoints import Checkpoints
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import Batch, initial_arrays, training_app

CLIENTS, ROUNDS, FREEZE_AFTER = 3, 6, 3

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(fraction_evaluate=0.0),
    "FedAvgM": lambda: FedAvgM(fraction_evaluate=0.0, server_momentum=0.9),
    "FedAdam": lambda: FedAdam(fraction_evaluate=0.0),
    "FedYogi": lambda: FedYogi(fraction_evaluate=0.0),
    "FedAdagrad": lambda: FedAdagrad(fraction_evaluate=0.0),
    "clipping around FedAdam": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAdam(fraction_evaluate=0.0), 0.0, 0.1, CLIENTS
    ),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def batches(partition: int, server_round: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(100 * server_round + partition)
    x: Tensor = torch.randn(4, 6, generator=generator) * (partition + 1) + partition
    return [(x, torch.randint(0, 3, (4,), generator=generator))] * 2


def federation(
    strategy: FixBN,
    run: int,
    checkpoints: Checkpoints | None = None,
    *,
    state_dir: Path | None = None,
    arrays: ArrayRecord | None = None,
    first_round: int = 1,
    stop_after: int = ROUNDS,
) -> dict[str, np.ndarray]:
    """Run a federation with its own Flower run; stop with an error after a round."""
    run_config = {"state-dir": str(state_dir)} if state_dir else {}
    grid = SerializingGrid(
        training_app(network, batches), CLIENTS, run_id=run, run_config=run_config
    )

    def evaluate(server_round: int, model: ArrayRecord) -> MetricRecord | None:
        if checkpoints and server_round >= first_round:
            checkpoints.save(server_round, {"model": model, "strategy": strategy.state()})
            strategy.checkpoints = checkpoints.rounds()
        if server_round == stop_after:
            raise KeyboardInterrupt
        return None

    strategy.checkpoints = checkpoints.rounds() if checkpoints else ()
    start: dict[str, Any] = {"evaluate_fn": evaluate, "first_round": first_round}
    result = strategy.start(grid, arrays or initial_arrays(network()), ROUNDS, **start)
    return {name: array.numpy() for name, array in result.arrays.items()}


def resumed(
    make: Callable[[], FixBN], folder: Path, stops: list[int], *, go_back: int = 0, **options: Any
) -> dict[str, np.ndarray]:
    """Run, stop after each of some rounds, and resume with new objects until the end.

    Before each resume, the ``go_back`` newest checkpoints are damaged.
    """
    checkpoints, strategy, run = Checkpoints(folder, keep=3), make(), 1
    begin: dict[str, Any] = {}
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            federation(strategy, run, checkpoints, stop_after=stop, **begin, **options)
        for damaged in sorted(folder.iterdir())[-go_back:] if go_back else []:
            damaged.write_bytes(damaged.read_bytes()[:-1])
        done, tree = checkpoints.newest()
        strategy, run = make(), run + 1
        strategy.restore(tree["strategy"])
        begin = {"arrays": tree["model"], "first_round": done + 1}
    return federation(strategy, run, checkpoints, stop_after=ROUNDS + 1, **begin, **options)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )


def makes(strategy: str, momentum: str) -> Callable[[], FixBN]:
    return lambda: FixBN(STRATEGIES[strategy](), freeze_after=FREEZE_AFTER, momentum=momentum)


@pytest.mark.parametrize("momentum", ["reset", "local", "global"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(
    strategy: str, momentum: str, tmp_path: Path
) -> None:
    make = makes(strategy, momentum)
    uninterrupted = federation(make(), 1, stop_after=ROUNDS + 1, state_dir=tmp_path / "whole")
    result = resumed(make, tmp_path / "c", [1, 2, 5], state_dir=tmp_path / "state")
    assert same(result, uninterrupted)


@pytest.mark.parametrize("momentum", ["local", "global"])
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(
    momentum: str, stop: int, tmp_path: Path
) -> None:
    """The clients have trained in rounds after the checkpoint."""
    make = makes("FedAvg", momentum)
    uninterrupted = federation(make(), 1, stop_after=ROUNDS + 1, state_dir=tmp_path / "whole")
    result = resumed(make, tmp_path / "c", [stop], go_back=2, state_dir=tmp_path / "state")
    assert same(result, uninterrupted)


def test_without_its_state_a_strategy_gives_other_bits(tmp_path: Path) -> None:
    """This shows that the tests above can fail."""
    make = makes("FedAdam", "reset")
    uninterrupted = federation(make(), 1, stop_after=ROUNDS + 1)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        federation(make(), 1, checkpoints, stop_after=2)
    _, tree = checkpoints.newest()
    rest = federation(make(), 2, arrays=tree["model"], first_round=3, stop_after=ROUNDS + 1)
    assert not same(rest, uninterrupted)


def test_a_strategy_that_is_built_differently_is_refused(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        federation(makes("FedAdam", "reset")(), 1, checkpoints, stop_after=2)
    _, tree = checkpoints.newest()
    strategy = makes("clipping around FedAdam", "reset")()
    strategy.restore(tree["strategy"])
    with pytest.raises(CheckpointError, match="build the strategy as it was"):
        federation(strategy, 2, arrays=tree["model"], first_round=3)


def test_a_checkpoint_of_an_older_version_still_resumes(tmp_path: Path) -> None:
    make, checkpoints = makes("FedAvgM", "global"), Checkpoints(tmp_path / "c")
    whole = federation(make(), 1, stop_after=ROUNDS + 1)
    with pytest.raises(KeyboardInterrupt):
        federation(make(), 1, checkpoints, stop_after=4)
    done, tree = checkpoints.newest()
    for later in ("switch", "signals", "return_point"):
        del tree["strategy"][later]
    again = make()
    again.restore(tree["strategy"])
    resumed = federation(
        again, 2, arrays=tree["model"], first_round=done + 1, stop_after=ROUNDS + 1
    )
    assert same(resumed, whole)
