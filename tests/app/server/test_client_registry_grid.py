"""The registry of clients: their order, missing and failing clients, and the counted bytes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.server.client_registry_grid import ClientRegistryGrid
from fixbn_flwr.app.server.reproducible_fedavg import ReproducibleFedAvg
from fixbn_flwr.errors import ClientsMissingError, ConfigError
from fixbn_flwr.testing import FIRST_NODE_ID, SerializingGrid
from tests.support.whole_app import size_of


def echo() -> ClientApp:
    """An app with as many images as its partition's number plus ten; it returns the arrays."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        node = context.node_config
        if node.get("broken"):
            raise ValueError("no data here: copy them to /data")
        examples = 10 + int(node.get("partition-id", 0))
        properties: Any = {"examples": examples, "input-size": [1, 8, 8], **node}
        return Message(RecordDict({"properties": ConfigRecord(properties)}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = RecordDict({"arrays": message.content["arrays"]})
        return Message(content, reply_to=message)

    return app


class Nodes(SerializingGrid):
    """A grid whose nodes connect and disconnect."""

    def __init__(self, nodes: int) -> None:
        super().__init__(echo(), nodes)
        self.connected = list(self.contexts)
        self.queried: list[int] = []
        self.gone: set[int] = set()

    def get_node_ids(self) -> Iterable[int]:
        return list(self.connected)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        self.queried += [message.metadata.dst_node_id for message in messages]
        replies = list(super().send_and_receive(messages, timeout=timeout))
        for place, message in enumerate(messages):
            if message.metadata.dst_node_id in self.gone:  # as the SuperLink replies for it
                replies[place] = Message(Error(5, "Node Unavailable"), reply_to=message)
                replies[place].metadata.__dict__["_src_node_id"] = 1
        return replies

    def node_config(self, node: int) -> dict[str, Any]:
        return self.contexts[FIRST_NODE_ID + node].node_config


@pytest.fixture
def nodes() -> Nodes:
    return Nodes(3)


def ids(*nodes: int) -> list[int]:
    return [FIRST_NODE_ID + node for node in nodes]


def test_clients_are_listed_by_partition(nodes: Nodes) -> None:
    for node, partition in enumerate([2, 0, 1]):
        nodes.node_config(node)["partition-id"] = partition
    registry = ClientRegistryGrid(nodes)
    clients = registry.assemble()
    assert [(c.partition, c.partitions, c.examples) for c in clients] == [
        (0, 3, 10), (1, 3, 11), (2, 3, 12)
    ]  # fmt: skip
    nodes.connected.reverse()
    assert registry.get_node_ids() == ids(1, 2, 0)
    assert sorted(nodes.queried) == ids(0, 1, 2)  # each only once


def test_two_clients_with_one_partition_are_refused(nodes: Nodes) -> None:
    nodes.node_config(2)["partition-id"] = 0
    with pytest.raises(ConfigError) as caught:
        ClientRegistryGrid(nodes).assemble()
    assert str(caught.value) == (
        "clients 1000 and 1002 both train on partition 0: give each its own in "
        '--node-config "partition-id=... num-partitions=...".'
    )


def test_a_partition_may_return_with_another_node_id(nodes: Nodes) -> None:
    registry = ClientRegistryGrid(nodes)
    registry.assemble()
    nodes.connected.remove(FIRST_NODE_ID)
    nodes.contexts[7] = Context(1, 7, {"partition-id": 0, "num-partitions": 3}, RecordDict(), {})
    nodes.connected.append(7)
    assert registry.get_node_ids() == [7, *ids(1, 2)]


def test_a_cause_that_stops_all_clients_is_reported_once(nodes: Nodes) -> None:
    for node in range(3):
        nodes.node_config(node)["broken"] = True
    with pytest.raises(ConfigError) as caught:
        ClientRegistryGrid(nodes).assemble()
    assert str(caught.value) == "client 1000 cannot start: no data here: copy them to /data"
    assert nodes.queried == ids(0)


def test_the_error_names_a_later_client_that_cannot_start(nodes: Nodes) -> None:
    nodes.node_config(2)["broken"] = True
    with pytest.raises(ConfigError, match="client 1002 cannot start: no data here"):
        ClientRegistryGrid(nodes).assemble()


@pytest.mark.parametrize(("connected", "count"), [([], "0 of 1"), ([0, 2], "2 of 3")])
def test_the_wait_for_missing_clients_ends(nodes: Nodes, connected: list[int], count: str) -> None:
    nodes.connected = ids(*connected)
    started = time.monotonic()
    with pytest.raises(ClientsMissingError) as caught:
        ClientRegistryGrid(nodes, patience=0.0).assemble()
    assert time.monotonic() - started < 5
    assert str(caught.value).startswith(f"{count} clients are connected after 0 seconds. Start")


def test_the_registry_waits_for_a_late_client(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.connected = ids(0)
    pauses: list[float] = []

    def connect_another(seconds: float) -> None:
        pauses.append(seconds)
        nodes.connected = ids(*range(1 + len(pauses)))

    monkeypatch.setattr(time, "sleep", connect_another)
    assert [client.partition for client in ClientRegistryGrid(nodes).assemble()] == [0, 1, 2]
    assert len(pauses) == 2


def test_patience_starts_when_too_few_clients_are_connected(nodes: Nodes) -> None:
    registry = ClientRegistryGrid(nodes, patience=0.0)
    registry.assemble()
    registry.needed = 2
    del nodes.connected[0]
    assert registry.get_node_ids() == ids(1, 2)  # two are enough
    del nodes.connected[0]
    assert registry.get_node_ids() == ids(2)  # Flower polls again
    with pytest.raises(ClientsMissingError, match="1 of 2 clients are connected"):
        registry.get_node_ids()
    nodes.connected = ids(0, 2)
    assert registry.get_node_ids() == ids(0, 2)
    nodes.connected = ids(0)
    assert registry.get_node_ids() == ids(0)  # patience starts again


def test_a_round_samples_its_fraction_of_the_connected_clients_but_at_least_the_needed(
    nodes: Nodes,
) -> None:
    strategy = ReproducibleFedAvg(Settings(fraction_train=0.5), needed=1)

    def sampled() -> int:
        return len(list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), nodes)))

    assert sampled() == 2  # 1.5, rounded
    del nodes.connected[0]
    assert sampled() == 1
    all_clients = ReproducibleFedAvg(Settings(), needed=1)
    assert len(list(all_clients.configure_train(1, ArrayRecord(), ConfigRecord(), nodes))) == 2


def test_clients_with_the_same_name_are_logged(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    for context in nodes.contexts.values():
        context.node_config["name"] = "clinic"
    ClientRegistryGrid(nodes).assemble()
    assert "3 clients have the name clinic: " in caplog.text


def test_the_bytes_of_sent_and_received_arrays_are_counted(nodes: Nodes) -> None:
    registry = ClientRegistryGrid(nodes)
    registry.assemble()
    assert (registry.bytes_sent, registry.bytes_received) == (0, 0)
    arrays = {"weight": np.zeros((3, 5), np.float32), "steps": np.array(7)}
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
            "config": ConfigRecord({"text": "not counted"}),
        }
    )
    messages = [Message(content, node, "train") for node in nodes.connected]
    nodes.lost = lambda message: message.metadata.dst_node_id == FIRST_NODE_ID
    replies = registry.send_and_receive(messages)
    assert len(replies) == 2
    size = size_of(arrays)
    assert (registry.bytes_sent, registry.bytes_received) == (3 * size, 2 * size)
    assert registry.send_and_receive([]) == []


def test_the_error_of_a_client_has_no_traceback(nodes: Nodes) -> None:
    registry = ClientRegistryGrid(nodes)
    registry.assemble()
    (reply,) = registry.send_and_receive([Message(RecordDict(), FIRST_NODE_ID, "evaluate")])
    assert reply.has_error()
    assert "Traceback" not in (reply.error.reason or "")


def with_own_data(nodes: Nodes, *names: str, patience: float = 0.0) -> ClientRegistryGrid:
    for node, name in enumerate(names):
        node_config = nodes.node_config(node)
        node_config.clear()
        node_config.update({"data-dir": "/data", "name": name})
    return ClientRegistryGrid(nodes, patience=patience)


def test_clients_with_their_own_data_are_listed_by_name_then_by_node_id(nodes: Nodes) -> None:
    registry = with_own_data(nodes, "b", "", "a")
    assert [client.name for client in registry.assemble(3)] == ["", "a", "b"]
    nodes.connected.reverse()
    assert registry.get_node_ids() == ids(1, 2, 0)
    registry = with_own_data(nodes, "b", "b", "a")
    registry.assemble(3)
    assert registry.get_node_ids() == ids(2, 0, 1)


def test_the_registry_waits_for_min_clients_with_their_own_data(nodes: Nodes) -> None:
    nodes.connected = ids(0, 1)
    assert len(with_own_data(nodes, "a", "b", "c").assemble(2)) == 2
    with pytest.raises(ClientsMissingError, match=r"2 of 3 clients .* min-clients if they"):
        with_own_data(nodes, "a", "b", "c").assemble(3)


def test_a_run_waits_for_its_earlier_clients_although_fewer_are_enough(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.connected = ids(0, 1)
    monkeypatch.setattr(time, "sleep", lambda _: setattr(nodes, "connected", ids(0, 1, 2)))
    registry = with_own_data(nodes, "a", "b", "c", patience=600.0)
    assert len(registry.assemble(3, at_least=2)) == 3


def test_a_run_goes_on_without_some_of_its_earlier_clients_after_a_while(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.connected = ids(0, 1)
    assert len(with_own_data(nodes, "a", "b", "c").assemble(3, at_least=2)) == 2
    assert "2 of 3 clients are connected: the run goes on without the others" in caplog.text
    nodes.connected = ids(0)
    partitions = Nodes(3)
    partitions.connected = ids(0)
    with pytest.raises(ClientsMissingError, match="1 of 2 clients"):
        with_own_data(nodes, "a", "b", "c").assemble(3, at_least=2)
    with pytest.raises(ClientsMissingError, match="1 of 3 clients"):  # on parts of the same data
        ClientRegistryGrid(partitions, patience=0.0).assemble(3, at_least=1)


def test_the_error_names_a_disconnected_node_when_the_superlink_replies_for_it(
    nodes: Nodes,
) -> None:
    registry = with_own_data(nodes, "a", "b", "c")
    registry.assemble(3)
    nodes.gone = {FIRST_NODE_ID + 1}
    (reply,) = registry.send_and_receive([Message(RecordDict(), FIRST_NODE_ID + 1, "evaluate")])
    assert reply.metadata.src_node_id == FIRST_NODE_ID + 1
    assert reply.error.reason == "b: Node Unavailable"


def test_a_node_that_disconnects_during_the_request_is_queried_again(nodes: Nodes) -> None:
    registry = with_own_data(nodes, "a", "b", "c")
    nodes.gone = {FIRST_NODE_ID}
    with pytest.raises(ClientsMissingError):
        registry.assemble(3)
    nodes.gone = set()
    assert len(registry.assemble(3)) == 3


def test_each_client_that_joins_disconnects_or_times_out_is_logged(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flwr.fixbn")
    registry = with_own_data(nodes, "a", "b", "c")
    nodes.connected = ids(0, 1)
    registry.assemble(2)
    nodes.connected = ids(0, 2)
    assert registry.get_node_ids() == ids(0, 2)
    nodes.lost = lambda message: message.metadata.dst_node_id == FIRST_NODE_ID
    registry.send_and_receive([Message(RecordDict(), node, "evaluate") for node in ids(0, 2)])
    logged = [record.getMessage() for record in caplog.records if record.name == "flwr.fixbn"]
    assert logged == [
        "client 1000 is a, with 10 images",
        "client 1001 is b, with 10 images",
        "client 1001 (b) disconnected",
        "client 1002 (c) joined the run",
        "client 1000 (a) timed out after 0 seconds: the round ends without it, and a later reply "
        "is ignored",
    ]


def test_a_later_node_that_cannot_start_does_not_end_the_run(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    registry = ClientRegistryGrid(nodes)
    nodes.connected = ids(0, 1)
    for node in (0, 1):
        nodes.node_config(node)["num-partitions"] = 2
    registry.assemble()
    nodes.node_config(2).update({"broken": True, "name": "c"})
    nodes.connected = ids(0, 1, 2)
    assert registry.get_node_ids() == registry.get_node_ids() == ids(0, 1)
    assert nodes.queried.count(FIRST_NODE_ID + 2) == 1
    assert (
        "client 1002 cannot start: no data here: copy them to /data; the run continues without"
        in caplog.text
    )
    nodes.connected = ids(0, 1)
    registry.get_node_ids()
    nodes.node_config(2).update({"broken": False, "partition-id": 2, "num-partitions": 3})
    nodes.connected = ids(0, 1, 2)
    assert registry.get_node_ids() == ids(0, 1, 2)  # fixed and restarted


def test_a_restarted_node_replaces_its_old_id_that_is_still_listed(nodes: Nodes) -> None:
    registry = ClientRegistryGrid(nodes)
    registry.assemble()
    nodes.contexts[7] = Context(1, 7, {"partition-id": 0, "num-partitions": 3}, RecordDict(), {})
    nodes.connected.append(7)
    assert registry.get_node_ids() == [7, *ids(1, 2)]


@pytest.mark.parametrize(
    ("key", "value"),
    [("examples", "many"), ("examples", ""), ("input-size", [8, 8]), ("input-size", [1, 0, 8]),
     ("input-size", "1x8x8")],
)  # fmt: skip
def test_the_error_names_a_client_with_invalid_properties(
    nodes: Nodes, key: str, value: Any
) -> None:
    for node in nodes.contexts.values():
        node.node_config[key] = value  # overrides its property
    with pytest.raises(ConfigError, match=r"client 1000 cannot start: .*the same version"):
        ClientRegistryGrid(nodes).assemble()
