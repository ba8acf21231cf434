"""A user's strategy may send and evaluate other models than the current one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, Strategy

from fixbn_flwr import FixBN
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import training_app
from tests.support.small_federation import (
    CLIENTS,
    ROUNDS,
    batches,
    fedavg,
    federation,
    network,
    same,
    statistics_of,
)

Arrays = dict[str, np.ndarray]


def run(strategy: Strategy) -> tuple[list[Arrays], list[Arrays], dict[int, Arrays]]:
    """Return the models that clients train from and evaluate, in order, and the global ones."""
    trained: list[Arrays] = []
    evaluated: list[Arrays] = []
    app, client = ClientApp(), training_app(network, batches)

    def received(message: Message) -> Arrays:
        return {name: array.numpy() for name, array in message.content["arrays"].items()}

    @app.train()
    def train(message: Message, context: Context) -> Message:
        trained.append(received(message))
        return client(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        evaluated.append(received(message))
        return client(message, context)

    _, of_round = federation(strategy, grid=SerializingGrid(app, CLIENTS))
    return trained, evaluated, of_round


class Best(FedAvg):
    """Lets clients evaluate the best model, here the first round's."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        if server_round == 1:
            self.best = arrays
        return arrays, metrics

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        return super().configure_evaluate(server_round, self.best, config, grid)


@pytest.mark.parametrize("freeze_after", [2, 1.0])
@pytest.mark.parametrize(
    "around",
    [
        lambda strategy: strategy,
        lambda strategy: DifferentialPrivacyServerSideFixedClipping(strategy, 0.0, 1e6, CLIENTS),
    ],
)
def test_a_model_is_evaluated_with_its_own_statistics(around: Any, freeze_after: Any) -> None:
    _, evaluated, of_round = run(FixBN(around(Best()), freeze_after=freeze_after))
    assert len(evaluated) == CLIENTS * ROUNDS
    assert not np.array_equal(of_round[1]["norm.running_var"], of_round[2]["norm.running_var"])
    for model in evaluated:
        assert all(np.allclose(model[n], array, rtol=1e-6) for n, array in of_round[1].items())


class Weighting(FedAvg):
    """Counts the last client more than its examples."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        *others, last = replies
        last.content["metrics"]["num-examples"] = 1000
        return super().aggregate_train(server_round, [last, *others])


@pytest.mark.parametrize("momentum", ["local", "global"])
def test_statistics_and_momentum_have_the_weights_that_a_strategy_sets(momentum: Any) -> None:
    def models(strategy: Strategy, examples: list[int]) -> dict[int, Arrays]:
        grid = SerializingGrid(training_app(network, batches, examples=examples), CLIENTS)
        fixbn = FixBN(strategy, freeze_after=2, momentum=momentum)
        return federation(fixbn, grid=grid, rounds=2)[1]

    own = models(Weighting(fraction_evaluate=0.0), [8, 8, 8, 8])
    expected = models(fedavg(), [8, 8, 8, 1000])
    for server_round, arrays in expected.items():
        for name, array in arrays.items():
            assert np.allclose(own[server_round][name], array, rtol=1e-5, atol=1e-6), name


class Zeroing(FedAvg):
    """Trains from other parameters and statistics than the current ones, and evaluates those."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        return super().configure_train(server_round, zeroed(arrays), config, grid)

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        return super().configure_evaluate(server_round, zeroed(arrays), config, grid)


def zeroed(arrays: ArrayRecord) -> ArrayRecord:
    return ArrayRecord({n: Array(np.zeros_like(a.numpy())) for n, a in arrays.items()})


def test_clients_train_from_the_parameters_that_a_strategy_sends_with_fixbns_statistics() -> None:
    trained, evaluated, of_round = run(FixBN(Zeroing(), freeze_after=2))
    assert len(trained) == len(evaluated) == CLIENTS * ROUNDS
    for place, model in enumerate(trained):
        assert same(statistics_of(model), statistics_of(of_round[place // CLIENTS]))
        assert not model["first.weight"].any()
    for model in evaluated:
        assert not any(array.any() for array in model.values())
