"""The older generation goes back to round T*, too; see tests/server/test_return_point.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import FedAvg, FedAvgM, FedYogi, Strategy

from fixbn_flwr import Phase
from fixbn_flwr.legacy import FixBN
from tests.support.older_generation import Arrays, arrays_of, numpy_app, run_older
from tests.support.small_federation import batches, network

T, CLIENTS = 2, 4
NAMES = list(network().state_dict())


def initial() -> Any:
    return ndarrays_to_parameters(arrays_of(network()))


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(initial_parameters=initial(), fraction_evaluate=0.0),
    "FedAvgM": lambda: FedAvgM(
        initial_parameters=initial(), fraction_evaluate=0.0, server_momentum=0.9
    ),
    "FedYogi": lambda: FedYogi(initial_parameters=initial(), fraction_evaluate=0.0),
}


def run(
    strategy: str, rounds: int, *, fail_in: Sequence[int] = (), **options: Any
) -> tuple[FixBN, dict[int, Arrays]]:
    """Run a federation with the same batches in every round; clients fail in some rounds."""

    def on_reply(_: int, server_round: int, arrays: Arrays, metrics: dict[str, Any]) -> None:
        metrics["train_loss"] = 1.0
        if server_round in fail_in:
            metrics["train_loss"] = 1e6
            for place, name in enumerate(NAMES):
                if "running" not in name and arrays[place].dtype == np.float32:
                    arrays[place] = np.asarray(arrays[place] * np.float32(1e3))

    fixbn = FixBN(
        STRATEGIES[strategy](), parameter_names=NAMES, num_rounds=rounds,
        **{"freeze_after": T, **options},
    )  # fmt: skip
    app = numpy_app(network, lambda partition, _: batches(partition, 1), on_reply=on_reply)
    return fixbn, run_older(fixbn, app, rounds, clients=CLIENTS)


def same(one: Arrays, other: Arrays) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("momentum", ["local", "global"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_after_going_back_a_run_is_the_one_that_never_failed(strategy: str, momentum: str) -> None:
    _, expected = run(strategy, 5, momentum=momentum, learning_rate_factor=0.3, guard=False)
    _, models = run(strategy, 7, fail_in=(4,), momentum=momentum)
    assert same(models[4], models[T])
    assert same(models[7], expected[5])


def test_after_three_tries_the_run_thaws() -> None:
    fixbn, models = run("FedAvg", 8, fail_in=(3, 4, 5, 6))
    assert all(same(models[r], models[T]) for r in (3, 4, 5, 6))
    assert fixbn.phase is Phase.EXPLORATION
    assert fixbn.frozen_statistics is None
    mean = NAMES.index("norm.running_mean")
    assert not np.array_equal(models[8][mean], models[T][mean])
