"""A small network, its data and a federation of it on the in-memory grid."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from torch import Tensor, nn

from fixbn_flwr.method.averaging import Kind, kind_of
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import Batch, initial_arrays, training_app

# Flower's own strategies raised errors for 0-d parameters, at least until 1.24.
_FLOWER = tuple(int(part) for part in version("flwr").split(".")[:2])
ZERO_DIMENSIONAL = _FLOWER >= (1, 30)

CLIENTS = 4
ROUNDS = 4
OnReply = Callable[[int, int, nn.Module, RecordDict], None]


class Network(nn.Module):
    """A model whose state dict has all kinds of arrays, with statistics in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.tensor(1.0) if ZERO_DIMENSIONAL else torch.ones(1))
        self.register_buffer("positions", torch.arange(7))  # integers, but no counter

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm(self.first(x)).relu()) * self.scale
        return logits


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network()


def batches(partition: int, server_round: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(100 * server_round + partition)
    x = torch.randn(4, 6, generator=generator) * (partition + 1) + partition
    return [(x, torch.randint(0, 3, (4,), generator=generator))] * 2


def federation(
    strategy: Strategy,
    *,
    on_reply: OnReply = lambda *_: None,
    rounds: int = ROUNDS,
    grid: SerializingGrid | None = None,
    arrays: ArrayRecord | None = None,
    **start: Any,
) -> tuple[Result, dict[int, dict[str, np.ndarray]]]:
    """Run a federation; return its result and the global arrays of each round (0: the initial)."""
    grid = grid or SerializingGrid(training_app(network, batches, on_reply=on_reply), CLIENTS)
    of_round: dict[int, dict[str, np.ndarray]] = {}

    def evaluate(server_round: int, global_arrays: ArrayRecord) -> MetricRecord:
        of_round[server_round] = {name: a.numpy() for name, a in global_arrays.items()}
        return MetricRecord({"round": server_round})

    result = strategy.start(
        grid, arrays or initial_arrays(network()), rounds, evaluate_fn=evaluate, **start
    )
    return result, of_round


def fedavg(**choices: Any) -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, **choices)


def statistics_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: a for name, a in arrays.items() if kind_of(name) is Kind.STATISTIC}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[n], other[n]) for n in one)


def corrupt(name: str, change: Callable[[np.ndarray], np.ndarray], *, client: int = 1) -> OnReply:
    """Return an `on_reply` that changes one array of one client's reply."""

    def on_reply(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
        if partition == client:
            record = content.array_records["arrays"]
            record[name] = Array(np.asarray(change(record[name].numpy().copy())))

    return on_reply


class WatchedFedAvg(FedAvg):
    """Records the arrays and the rounds that a wrapped strategy sees."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=1.0)
        self.seen: set[str] = set()
        self.rounds: list[tuple[str, int]] = []

    def configure_train(self, server_round: int, arrays: ArrayRecord, *args: Any) -> Any:
        self.seen |= arrays.keys()
        self.rounds.append(("train", server_round))
        return super().configure_train(server_round, arrays, *args)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, *args: Any) -> Any:
        self.seen |= arrays.keys()
        self.rounds.append(("evaluate", server_round))
        return super().configure_evaluate(server_round, arrays, *args)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        for reply in replies:
            for record in reply.content.array_records.values():
                self.seen |= record.keys()
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self.seen |= arrays.keys()
        return arrays, metrics
