"""The clients as the server app sees them: in order, complete or not at all, and counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp

from fixbn_flwr import numpy_client_mod
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.server.client_registry_grid import Federation
from fixbn_flwr.app.server_app import ReproducibleFedAvg
from fixbn_flwr.errors import ClientsMissingError, ConfigError
from fixbn_flwr.testing import FIRST_NODE_ID, InMemoryGrid
from tests.support.whole_app import weight_of


class Echo(NumPyClient):
    """Holds ten images more than its partition's number, and returns what it is sent."""

    def __init__(self, context: Context) -> None:
        self.node = context.node_config

    def get_properties(self, config: Any) -> dict[str, Any]:
        if self.node.get("broken"):
            raise ValueError("no data here: copy them to /data")
        return {"examples": 10 + int(self.node.get("partition-id", 0)), **self.node}

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
        self.gone: set[int] = set()

    def get_node_ids(self) -> Iterable[int]:
        return list(self.connected)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        self.asked += [message.metadata.dst_node_id for message in messages]
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for place, message in enumerate(messages):
            if message.metadata.dst_node_id in self.gone:  # as the SuperLink answers for it
                replies[place] = Message(Error(5, "Node Unavailable"), reply_to=message)
                replies[place].metadata.__dict__["_src_node_id"] = 1
        return replies

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
    members = federation.assemble()
    assert [(m.partition, m.partitions, m.examples) for m in members] == [
        (0, 3, 10), (1, 3, 11), (2, 3, 12)
    ]  # fmt: skip
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


def test_a_round_takes_its_share_of_those_who_are_there_but_no_fewer_than_it_needs(
    nodes: Nodes,
) -> None:
    strategy = ReproducibleFedAvg(Settings(fraction_train=0.5), needed=1)

    def asked() -> int:
        return len(list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), nodes)))

    assert asked() == 2  # 1.5, rounded
    del nodes.connected[0]
    assert asked() == 1
    whole = ReproducibleFedAvg(Settings(), needed=1)
    assert len(list(whole.configure_train(1, ArrayRecord(), ConfigRecord(), nodes))) == 2


def test_clients_of_one_name_are_told(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    for context in nodes.contexts.values():
        context.node_config["name"] = "clinic"
    Federation(nodes).assemble()
    assert "3 clients are called clinic: " in caplog.text


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


def with_own_data(nodes: Nodes, *names: str) -> Federation:
    for node, name in enumerate(names):
        place = nodes.place(node)
        place.clear()
        place.update({"data-dir": "/data", "name": name})
    return Federation(nodes, patience=0.0)


def test_clients_with_data_of_their_own_are_listed_by_name_then_by_number(nodes: Nodes) -> None:
    federation = with_own_data(nodes, "b", "", "a")
    assert [member.name for member in federation.assemble(3)] == ["", "a", "b"]
    nodes.connected.reverse()
    assert federation.get_node_ids() == ids(1, 2, 0)
    federation = with_own_data(nodes, "b", "b", "a")
    federation.assemble(3)
    assert federation.get_node_ids() == ids(2, 0, 1)


def test_as_many_clients_with_their_own_data_are_waited_for_as_the_run_asks(nodes: Nodes) -> None:
    nodes.connected = ids(0, 1)
    assert len(with_own_data(nodes, "a", "b", "c").assemble(2)) == 2
    with pytest.raises(ClientsMissingError, match=r"2 of 3 clients .* min-clients where they"):
        with_own_data(nodes, "a", "b", "c").assemble(3)


def test_a_node_that_is_gone_is_named_where_the_superlink_answers_for_it(nodes: Nodes) -> None:
    federation = with_own_data(nodes, "a", "b", "c")
    federation.assemble(3)
    nodes.gone = {FIRST_NODE_ID + 1}
    (reply,) = federation.send_and_receive([Message(RecordDict(), FIRST_NODE_ID + 1, "evaluate")])
    assert reply.metadata.src_node_id == FIRST_NODE_ID + 1
    assert reply.error.reason == "b: Node Unavailable"


def test_a_node_that_goes_while_it_is_asked_is_asked_again(nodes: Nodes) -> None:
    federation = with_own_data(nodes, "a", "b", "c")
    nodes.gone = {FIRST_NODE_ID}
    with pytest.raises(ClientsMissingError):
        federation.assemble(3)
    nodes.gone = set()
    assert len(federation.assemble(3)) == 3


def test_who_comes_goes_and_does_not_answer_is_said_in_a_line_each(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flwr.fixbn")
    federation = with_own_data(nodes, "a", "b", "c")
    nodes.connected = ids(0, 1)
    federation.assemble(2)
    nodes.connected = ids(0, 2)
    assert federation.get_node_ids() == ids(0, 2)
    nodes.lost = lambda message: message.metadata.dst_node_id == FIRST_NODE_ID
    federation.send_and_receive([Message(RecordDict(), node, "evaluate") for node in ids(0, 2)])
    said = [record.getMessage() for record in caplog.records if record.name == "flwr.fixbn"]
    assert said == [
        "client 1000 is a, with 10 images",
        "client 1001 is b, with 10 images",
        "client 1001 (b) has gone",
        "client 1002 (c) takes part from now on",
        "client 1000 (a) has not answered within 0 seconds: the round ends without it, and what "
        "it sends later is not used",
    ]


def test_a_later_node_that_cannot_start_does_not_end_the_run(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    federation = Federation(nodes)
    nodes.connected = ids(0, 1)
    for node in (0, 1):
        nodes.place(node)["num-partitions"] = 2
    federation.assemble()
    nodes.place(2).update({"broken": True, "name": "c"})
    nodes.connected = ids(0, 1, 2)
    assert federation.get_node_ids() == federation.get_node_ids() == ids(0, 1)
    assert nodes.asked.count(FIRST_NODE_ID + 2) == 1
    assert (
        "client 1002 cannot start: no data here: copy them to /data; the run goes on without"
        in (caplog.text)
    )
    nodes.connected = ids(0, 1)
    federation.get_node_ids()
    nodes.place(2).update({"broken": False, "partition-id": 2, "num-partitions": 3})
    nodes.connected = ids(0, 1, 2)
    assert federation.get_node_ids() == ids(0, 1, 2)  # mended and started again


def test_a_restarted_node_takes_its_partition_from_the_one_still_counted(nodes: Nodes) -> None:
    federation = Federation(nodes)
    federation.assemble()
    nodes.contexts[7] = Context(1, 7, {"partition-id": 0, "num-partitions": 3}, RecordDict(), {})
    nodes.connected.append(7)
    assert federation.get_node_ids() == [7, *ids(1, 2)]


@pytest.mark.parametrize("examples", ["many", None])
def test_a_client_that_says_nothing_of_sense_is_named(nodes: Nodes, examples: str | None) -> None:
    for node in nodes.contexts.values():
        node.node_config["examples"] = examples or ""  # in place of its own
    with pytest.raises(ConfigError, match=r"client 1000 cannot start: .*the same version"):
        Federation(nodes).assemble()
