"""What the benchmark of many nodes counts."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fixbn_flwr.testing import SerializingGrid
from simulation.benchmarks.many_nodes import Load, load_table
from simulation.benchmarks.many_nodes_app import client, exchange

WRONG = ClientApp()


@WRONG.train()
def send_back(message: Message, context: Any) -> Message:
    """Return the array as it came, and fail on the first node."""
    if context.node_config["partition-id"] == 0:
        raise RuntimeError("it left")
    return Message(RecordDict(dict(message.content)), reply_to=message)


def counts(line: dict[str, float]) -> dict[str, float]:
    assert line.pop("seconds") > 0
    return line


def test_a_correct_reply_is_counted_for_each_message() -> None:
    assert counts(exchange(SerializingGrid(client, 3), server_round=4, per_round=2)) == {
        "round": 4, "connected": 3, "sent": 2, "correct": 2, "wrong": 0, "errors": 0,
    }  # fmt: skip


def test_wrong_replies_errors_and_lost_messages_are_told_apart() -> None:
    line = counts(exchange(SerializingGrid(WRONG, 3), server_round=1, per_round=5))
    assert (line["sent"], line["correct"], line["wrong"], line["errors"]) == (3, 0, 2, 1)
    lost = SerializingGrid(client, 3, lost=lambda message: True)
    line = counts(exchange(lost, server_round=1, per_round=3))
    assert (line["sent"], line["correct"], line["wrong"], line["errors"]) == (3, 0, 0, 0)


@pytest.mark.parametrize(("per_round", "served"), [(2, [0, 1, 2, 0, 1, 2]), (3, [0, 1, 2] * 3)])
def test_the_nodes_take_turns(per_round: int, served: list[int]) -> None:
    seen: list[int] = []
    app = ClientApp()

    @app.train()
    def note(message: Message, context: Any) -> Message:
        seen.append(context.node_config["partition-id"])
        return Message(RecordDict(dict(message.content)), reply_to=message)

    grid = SerializingGrid(app, 3)
    for server_round in (1, 2, 3):
        exchange(grid, server_round, per_round)
    assert seen == served


def test_the_table_counts_what_is_lost() -> None:
    lines = [
        {"seconds": 2.0, "sent": 3, "correct": 3, "wrong": 0, "errors": 0},
        {"seconds": 4.0, "sent": 4, "correct": 1, "wrong": 1, "errors": 1},
    ]
    load = Load(5, 3, 1, 60.0, 178.4, [160.2, 170.0, 180.0], lines)
    assert load_table(load) == (
        "5 SuperNodes, 178 MB each, connected after 60 s\n"
        "2 rounds of 2.0 to 4.0 s, 3 messages each\n"
        "7 sent, 4 correct replies, 1 wrong, 1 errors of nodes that left, 1 lost\n"
        "SuperLink: 160 MB before, 180 MB after"
    )
