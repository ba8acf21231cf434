"""A strategy inside FixBN sees the errors of failed clients, as in Flower."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, Strategy
from torch import nn

from fixbn_flwr import FixBN
from fixbn_flwr.errors import RoundsFailedError
from fixbn_flwr.testing import FIRST_NODE_ID, SerializingGrid
from tests.support.clients import initial_arrays, partition_of, training_app
from tests.support.small_federation import CLIENTS, batches, federation, network, same


def with_failing_client() -> ClientApp:
    """An app whose client of partition 2 fails in round 2, in training and in evaluation."""
    app, trainer = ClientApp(), training_app(network, batches)

    def fail(message: Message, context: Context) -> None:
        (config,) = message.content.config_records.values()
        if partition_of(context) == 2 and config["server-round"] == 2:
            raise RuntimeError("no disk")

    @app.train()
    def train(message: Message, context: Context) -> Message:
        fail(message, context)
        return trainer(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        fail(message, context)
        content = RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.5})})
        return Message(content, reply_to=message)

    return app


class CountingErrors(FedAvg):
    """Records which nodes reply with an error."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=1.0)
        self.failed: list[tuple[str, int, list[int]]] = []

    def record(self, step: str, server_round: int, replies: list[Message]) -> None:
        nodes = [reply.metadata.src_node_id for reply in replies if reply.has_error()]
        self.failed.append((step, server_round, nodes))

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.record("train", server_round, replies)
        return super().aggregate_train(server_round, replies)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.record("evaluate", server_round, replies)
        return super().aggregate_evaluate(server_round, replies)


def test_a_strategy_receives_the_same_errors_as_without_fixbn() -> None:
    def run(wrap: bool) -> list[tuple[str, int, list[int]]]:
        strategy = CountingErrors()
        outer: Strategy = FixBN(strategy, freeze_after=1.0) if wrap else strategy
        grid = SerializingGrid(with_failing_client(), CLIENTS)
        outer.start(grid, initial_arrays(network()), 2)
        return strategy.failed

    flowers = run(wrap=False)
    node = FIRST_NODE_ID + 2
    assert [nodes for _, _, nodes in flowers] == [[], [], [node], [node]]
    assert run(wrap=True) == flowers


def spoil(partition: int, server_round: int, _: nn.Module, content: RecordDict) -> None:
    if (partition, server_round) == (2, 2):
        record = content.array_records["arrays"]
        name = next(iter(record))
        record[name] = Array(np.full_like(record[name].numpy(), np.nan))


def test_a_dropped_reply_is_an_error_for_the_strategy() -> None:
    strategy = CountingErrors()
    federation(FixBN(strategy, freeze_after=1), on_reply=spoil)
    training = [nodes for step, _, nodes in strategy.failed if step == "train"]
    assert training == [[], [FIRST_NODE_ID + 2], [], []]


def test_differential_privacy_skips_a_round_with_a_failed_client() -> None:
    """Its noise is calibrated for the average over all sampled clients."""
    inner = DifferentialPrivacyServerSideFixedClipping(
        FedAvg(fraction_evaluate=0.0), noise_multiplier=0.1, clipping_norm=1.0,
        num_sampled_clients=CLIENTS,
    )  # fmt: skip
    strategy = FixBN(inner, freeze_after=1.0)
    models: dict[int, dict[str, Any]] = {}

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        models[server_round] = {name: array.numpy() for name, array in arrays.items()}

    grid = SerializingGrid(with_failing_client(), CLIENTS)
    strategy.start(grid, initial_arrays(network()), 3, evaluate_fn=evaluate)
    assert same(models[2], models[1])
    assert not same(models[3], models[2])


def test_a_round_without_any_usable_reply_ends_the_run_at_the_start() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise RuntimeError("no disk")

    strategy = CountingErrors()
    with pytest.raises(RoundsFailedError, match="no disk"):
        FixBN(strategy, freeze_after=1).start(
            SerializingGrid(app, CLIENTS), initial_arrays(network()), 2
        )
    assert strategy.failed == []


@pytest.mark.parametrize("duplicate", [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy])
def test_a_strategy_inside_fixbn_can_be_pickled_and_copied(duplicate: Any) -> None:
    strategy = CountingErrors()
    federation(FixBN(strategy, freeze_after=1), rounds=1)
    restored = duplicate(strategy)
    assert type(restored) is CountingErrors
    assert restored.failed == strategy.failed
    federation(FixBN(restored, freeze_after=1), rounds=1)
    assert len(restored.failed) == 2 * len(strategy.failed)
