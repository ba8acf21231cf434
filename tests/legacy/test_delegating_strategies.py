"""A user's older strategy around one of Flower's (``.strategy``) changes nothing inside FixBN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.server.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    QFedAvg,
    Strategy,
)

from tests.support.older_federation import CLIENTS, NAMES, app, fedavg, fixbn
from tests.support.older_generation import run_older

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Logging(Strategy):
    """Delegates to another strategy, and keeps the number of arrays that it sees."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.seen: list[int] = []

    def initialize_parameters(self, client_manager: Any) -> Any:
        return self.strategy.initialize_parameters(client_manager)

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        self.seen.append(len(parameters.tensors))
        return self.strategy.configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.seen += [len(fit.parameters.tensors) for _, fit in results]
        parameters, metrics = self.strategy.aggregate_fit(server_round, results, failures)
        assert parameters is not None
        self.seen.append(len(parameters.tensors))
        return parameters, metrics

    def configure_evaluate(self, *arguments: Any) -> Any:
        return self.strategy.configure_evaluate(*arguments)

    def aggregate_evaluate(self, *arguments: Any) -> Any:
        return self.strategy.aggregate_evaluate(*arguments)

    def evaluate(self, *arguments: Any) -> Any:
        return self.strategy.evaluate(*arguments)


class OwnPrivacy(DifferentialPrivacyServerSideFixedClipping):
    """A subclass of a strategy of Flower's that wraps another one."""


class Saving(FedAvg):
    """A subclass of a strategy of Flower's inside the user's strategy."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        assert parameters is not None
        assert len(parameters.tensors) == len(NAMES)
        return parameters, metrics


def choices() -> dict[str, Any]:
    return {"initial_parameters": fedavg().initial_parameters, "fraction_evaluate": 0.0}


def no_loss(_: int, arrays: Any, __: Any) -> Any:
    assert len(arrays) == len(NAMES)  # QFedAvg evaluates while it averages
    return 0.5, {}


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": fedavg,
    "FedAvgM": lambda: FedAvgM(server_momentum=0.9, **choices()),
    "FedAdam": lambda: FedAdam(**choices()),
    "FedMedian": lambda: FedMedian(**choices()),
    "QFedAvg": lambda: QFedAvg(qffl_learning_rate=0.05, evaluate_fn=no_loss, **choices()),
    "privacy": lambda: DifferentialPrivacyServerSideFixedClipping(fedavg(), 0.0, 0.1, CLIENTS),
    "a subclass of privacy": lambda: OwnPrivacy(fedavg(), 0.0, 0.1, CLIENTS),
    "a subclass of privacy around a subclass": lambda: OwnPrivacy(
        Saving(**choices()), 0.0, 0.1, CLIENTS
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_around_one_of_flowers_changes_nothing(name: str) -> None:
    make = STRATEGIES[name]
    once, twice = Logging(make()), Logging(Logging(make()))
    expected, got, nested = (
        run_older(fixbn(strategy, freeze_after=1), app(), 2) for strategy in (make(), once, twice)
    )
    for server_round in (1, 2):
        assert all(map(np.array_equal, got[server_round], expected[server_round]))
        assert all(map(np.array_equal, nested[server_round], expected[server_round]))
    assert once.seen == twice.seen == [len(NAMES)] * (2 + CLIENTS) * 2
