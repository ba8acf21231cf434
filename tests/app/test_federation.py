"""The clients as the server app sees them: in order, complete or not at all, and counted."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from whole_app import weight_of

from fixbn_flwr.app.federation import Federation, Member
from fixbn_flwr.bridge import numpy_client_mod
from fixbn_flwr.errors import ClientsMissingError, ConfigError
from simulation.in_memory_grid import FIRST_NODE_ID, InMemoryGrid


class Echo(NumPyClient):
    """Holds ten images more than its partition's number, and returns what it is sent."""

    def __init__(self, context: Context) -> None:
        self.node = context.node_config

    def get_properties(self, config: Any) -> dict[str, Any]:
        if self.node.get("broken"):
            raise ValueError("no data here: copy them to /data")
        return {**self.node, "examples": 10 + int(self.node["partition-id"])}

    def fit(self, parameters: Any, config: Any) -> Any:
        return parameters, 1, {}


class Nodes(InMemoryGrid):
    """A grid whose nodes come and go."""

    def __init__(self, nodes: int) -> None:
        def client_fn(context: Context) -> Client:
            return Echo(context).to_client()

        super().__init__(ClientApp(client_fn=client_fn, mods=[numpy_client_mod]), nodes)
        self.connected = list(self.contexts)
        self.asked: list[int] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.connected)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        self.asked += [message.metadata.dst_node_id for message in messages]
        return super().send_and_receive(messages, timeout=timeout)

    def place(self, node: int) -> dict[str, Any]:
        return self.contexts[FIRST_NODE_ID + node].node_config


@pytest.fixture
def nodes() -> Nodes:
    return Nodes(3)


def ids(*nodes: int) -> list[int]:
    return [FIRST_NODE_ID + node for node in nodes]


def test_clients_are_listed_by_partition_whatever_their_numbers(nodes: Nodes) -> None:
    for node, partition in enumerate([2, 0, 1]):
        nodes.place(node)["partition-id"] = partition
    federation = Federation(nodes)
    assert federation.assemble() == [Member(0, 3, 10), Member(1, 3, 11), Member(2, 3, 12)]
    nodes.connected.reverse()
    assert federation.get_node_ids() == ids(1, 2, 0)
    assert sorted(nodes.asked) == ids(0, 1, 2)  # each once, however often the nodes are listed


def test_two_clients_of_one_partition_are_refused(nodes: Nodes) -> None:
    nodes.place(2)["partition-id"] = 0
    with pytest.raises(ConfigError) as caught:
        Federation(nodes).assemble()
    assert str(caught.value) == (
        "clients 1000 and 1002 both train on partition 0: give each its own in "
        '--node-config "partition-id=... num-partitions=...".'
    )


def test_a_partition_may_come_back_as_another_node(nodes: Nodes) -> None:
    federation = Federation(nodes)
    federation.assemble()
    nodes.connected.remove(FIRST_NODE_ID)
    nodes.contexts[7] = Context(1, 7, {"partition-id": 0, "num-partitions": 3}, RecordDict(), {})
    nodes.connected.append(7)
    assert federation.get_node_ids() == [7, *ids(1, 2)]


def test_what_stops_one_client_is_heard_once_and_in_its_own_words(nodes: Nodes) -> None:
    for node in range(3):
        nodes.place(node)["broken"] = True
    with pytest.raises(ConfigError) as caught:
        Federation(nodes).assemble()
    assert str(caught.value) == "client 1000 cannot start: no data here: copy them to /data"
    assert nodes.asked == ids(0)


def test_a_later_client_that_cannot_start_is_named(nodes: Nodes) -> None:
    nodes.place(2)["broken"] = True
    with pytest.raises(ConfigError, match="client 1002 cannot start: no data here"):
        Federation(nodes).assemble()


@pytest.mark.parametrize(("connected", "count"), [([], "0 of 1"), ([0, 2], "2 of 3")])
def test_missing_clients_are_not_waited_for_for_ever(
    nodes: Nodes, connected: list[int], count: str
) -> None:
    nodes.connected = ids(*connected)
    started = time.monotonic()
    with pytest.raises(ClientsMissingError) as caught:
        Federation(nodes, patience=0.0).assemble()
    assert time.monotonic() - started < 5
    assert str(caught.value).startswith(f"{count} clients are connected after 0 seconds. Start")


def test_a_client_that_comes_late_is_waited_for(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.connected = ids(0)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        nodes.connected = ids(*range(1 + len(naps)))

    monkeypatch.setattr(time, "sleep", nap)
    assert [member.partition for member in Federation(nodes).assemble()] == [0, 1, 2]
    assert len(naps) == 2


def test_in_mid_run_patience_begins_with_the_first_look_that_finds_too_few(nodes: Nodes) -> None:
    federation = Federation(nodes, patience=0.0)
    federation.assemble()
    federation.need(2)
    del nodes.connected[0]
    assert federation.get_node_ids() == ids(1, 2)  # two are enough
    del nodes.connected[0]
    assert federation.get_node_ids() == ids(2)  # Flower looks again
    with pytest.raises(ClientsMissingError, match="1 of 2 clients are connected"):
        federation.get_node_ids()
    nodes.connected = ids(0, 2)
    assert federation.get_node_ids() == ids(0, 2)
    nodes.connected = ids(0)
    assert federation.get_node_ids() == ids(0)  # patience is new after they were complete


def test_the_arrays_of_messages_and_replies_are_counted(nodes: Nodes) -> None:
    federation = Federation(nodes)
    federation.assemble()
    assert (federation.bytes_sent, federation.bytes_received) == (0, 0)
    arrays = {"weight": np.zeros((3, 5), np.float32), "steps": np.array(7)}
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "config": ConfigRecord({"text": "not counted"}),
        }
    )
    messages = [Message(content, node, "train") for node in nodes.connected]
    nodes.lost = lambda message: message.metadata.dst_node_id == FIRST_NODE_ID
    replies = federation.send_and_receive(messages)
    assert len(replies) == 2
    weight = weight_of(arrays)
    assert (federation.bytes_sent, federation.bytes_received) == (3 * weight, 2 * weight)
    assert federation.send_and_receive([]) == []


def test_the_error_of_a_client_is_told_in_its_own_words(nodes: Nodes) -> None:
    federation = Federation(nodes)
    federation.assemble()
    (reply,) = federation.send_and_receive([Message(RecordDict(), FIRST_NODE_ID, "evaluate")])
    assert reply.has_error()
    assert "Traceback" not in (reply.error.reason or "")
