"""A user's strategy around one of Flower's (``.strategy``) changes nothing inside FixBN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    QFedAvg,
    Strategy,
)
from torch import nn

from fixbn_flwr import FixBN
from tests.support.small_federation import CLIENTS, fedavg, federation, network, same

NAMES = list(network().state_dict())


class Logging(Strategy):
    """Delegates to another strategy, and keeps the names of the arrays that it sees."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.seen: list[list[str]] = []

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        self.seen.append(list(arrays))
        return self.strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.seen += [list(reply.content["arrays"]) for reply in replies]
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        assert arrays is not None
        self.seen.append(list(arrays))
        return arrays, metrics

    def configure_evaluate(self, *arguments: Any) -> Any:
        return self.strategy.configure_evaluate(*arguments)

    def aggregate_evaluate(self, *arguments: Any) -> Any:
        return self.strategy.aggregate_evaluate(*arguments)

    def summary(self) -> None:
        self.strategy.summary()


class Saving(FedAvg):
    """A subclass of a strategy of Flower's inside the user's strategy."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert list(arrays or ()) == NAMES
        return arrays, metrics


class OwnPrivacy(DifferentialPrivacyServerSideFixedClipping):
    """A subclass of a strategy of Flower's that wraps another one."""


def private(strategy: Strategy, kind: Any = DifferentialPrivacyServerSideFixedClipping) -> Strategy:
    made: Strategy = kind(strategy, 0.0, 0.1, CLIENTS)
    return made


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": fedavg,
    "FedAdam": lambda: FedAdam(fraction_evaluate=0.0),
    "FedMedian": lambda: FedMedian(fraction_evaluate=0.0),
    "QFedAvg": lambda: QFedAvg(fraction_evaluate=0.0, client_learning_rate=0.05),
    "privacy": lambda: private(fedavg()),
    "a subclass": lambda: Saving(fraction_evaluate=0.0),
    "privacy around a subclass": lambda: private(Saving(fraction_evaluate=0.0)),
    "a subclass of privacy": lambda: private(fedavg(), OwnPrivacy),
    "a subclass of privacy around a subclass": lambda: private(
        Saving(fraction_evaluate=0.0), OwnPrivacy
    ),
}


def run(strategy: Strategy) -> dict[int, dict[str, np.ndarray]]:
    def on_reply(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
        content.metric_records["metrics"]["train_loss"] = 1.0 + partition

    return federation(FixBN(strategy, freeze_after=1), on_reply=on_reply, rounds=2)[1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_around_one_of_flowers_changes_nothing(name: str) -> None:
    make = STRATEGIES[name]
    plain, once, twice = make(), Logging(make()), Logging(Logging(make()))
    expected, got = run(plain), run(once)
    assert all(same(expected[r], got[r]) for r in expected)
    assert once.seen == [NAMES] * (2 + CLIENTS) * 2
    nested = run(twice)
    assert all(same(expected[r], nested[r]) for r in expected)
    assert twice.seen == once.seen


def test_a_strategy_of_flowers_can_be_used_in_a_second_fixbn_without_the_users() -> None:
    strategy = fedavg()
    expected, first, second = run(fedavg()), run(Logging(strategy)), run(strategy)
    assert all(same(expected[r], first[r]) and same(expected[r], second[r]) for r in expected)
    assert type(strategy) is FedAvg
