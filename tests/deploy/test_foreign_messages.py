"""A registered node that takes no part in a run asks for it, and answers for the node that does.

The tests depend on their order. The intruder's key is registered, but it never connects, so the run
does not know it. It has what an attacker lacks: the numbers of the run, of the other nodes and of
their messages, which the test reads from the SuperLink's database.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from flwr.proto.error_pb2 import Error
from flwr.proto.fab_pb2 import GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node as NodeId
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse

from tests.support.federations import Node, final_model, train
from tests.support.gateways import GuardedFederation, needs_nginx
from tests.support.machines import Service, switch_off
from tests.support.node_requests import Key, key_of, post
from tests.support.waiting import read_log, wait_until

pytestmark = [pytest.mark.slow, needs_nginx]

ROUNDS = 2
NAMES = ("hospital-a", "hospital-b")


class Intruder:
    """Sends requests with its own key."""

    def __init__(self, federation: GuardedFederation, client: httpx.Client, key: Key) -> None:
        self._client = client
        self._key = key
        self.number = federation.numbers["intruder"]

    def ask(self, path: str, request: Any) -> httpx.Response:
        return post(self._client, path, request, self._key)

    def reply(self, message: dict[str, Any], sender: int) -> httpx.Response:
        """Answer a message with an error, in the name of a node."""
        name = "f" * 64
        metadata = Metadata(
            run_id=message["run_id"],
            message_id=name,
            src_node_id=sender,
            dst_node_id=1,
            reply_to_message_id=message["message_id"],
            group_id=message["group_id"],
            created_at=message["created_at"] + 1,
            ttl=100,
            message_type="train",
        )
        request = PushMessagesRequest(
            node=NodeId(node_id=self.number),
            messages_list=[Message(metadata=metadata, error=Error(code=0, reason="forged"))],
            message_object_trees=[ObjectTree(object_id=name)],
        )
        return self.ask("push-messages", request)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedFederation]:
    federation = GuardedFederation(tmp_path_factory.mktemp("foreign"))
    yield federation
    switch_off(federation.machines)


@pytest.fixture(scope="module")
def nodes(federation: GuardedFederation) -> list[Node]:
    nodes = [federation.add(name, f"{number}/2") for number, name in enumerate(NAMES)]
    for service in [node.start() for node in nodes]:
        service.wait_for("SuperNode ID: ")
    return nodes


@pytest.fixture(scope="module")
def intruder(federation: GuardedFederation, nodes: list[Node]) -> Iterator[Intruder]:
    key = key_of(federation, "intruder")
    with federation.gateway.client(federation.gateway.port) as client:
        yield Intruder(federation, client, key)


@pytest.fixture(scope="module")
def calm(federation: GuardedFederation, nodes: list[Node]) -> bytes:
    """Return the model of a run that nobody attacks."""
    run = start(federation, "calm")
    for _ in range(ROUNDS):
        train(nodes)
    assert run.end() == 0
    return final_model(federation, "calm")


@pytest.fixture(scope="module")
def run(federation: GuardedFederation, nodes: list[Node], calm: bytes) -> Service:
    """Start the run that is attacked; its first round has begun."""
    run = start(federation, "attacked")
    for node in nodes:
        node.wait_until_it_trains()
    return run


@pytest.fixture(scope="module")
def message(federation: GuardedFederation, run: Service) -> dict[str, Any]:
    """Return the metadata of the message that hospital-a works on."""
    found = messages(federation, federation.numbers["hospital-a"])
    return max(found, key=lambda each: float(each["created_at"]))


def start(federation: GuardedFederation, name: str) -> Service:
    return federation.start_run(name, num_server_rounds=ROUNDS, freeze_after=1)


def messages(federation: GuardedFederation, number: int) -> list[dict[str, Any]]:
    """Return the metadata of all messages to a node, from the SuperLink's database."""
    database = federation.link.home / ".fixbn" / "superlink" / "state.db"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM message_ins").fetchall()
    numbers = ("run_id", "dst_node_id")
    found = [{**row, **{name: row[name] % 2**64 for name in numbers}} for row in map(dict, rows)]
    return [row for row in found if row["dst_node_id"] == number]


def test_the_superlink_tells_every_registered_node_about_a_run_whose_number_it_knows(
    intruder: Intruder, message: dict[str, Any]
) -> None:
    node, run_id = NodeId(node_id=intruder.number), message["run_id"]
    told = GetRunResponse.FromString(
        intruder.ask("get-run", GetRunRequest(node=node, run_id=run_id)).content
    ).run
    assert told.run_id == run_id
    request = GetFabRequest(node=node, run_id=run_id, hash_str=told.fab_hash)
    assert GetFabResponse.FromString(intruder.ask("get-fab", request).content).fab.content


def test_a_run_that_is_over_or_unknown_is_refused(
    federation: GuardedFederation, intruder: Intruder, message: dict[str, Any]
) -> None:
    node, gateway = NodeId(node_id=intruder.number), federation.gateway
    before = gateway.refusals()
    (over,) = set(federation.statuses()) - {message["run_id"]}
    for run_id in (over, 12345):
        request = GetRunRequest(node=node, run_id=run_id)
        assert intruder.ask("get-run", request).status_code >= 400, run_id
        fab = GetFabRequest(node=node, run_id=run_id, hash_str="0" * 64)
        assert intruder.ask("get-fab", fab).status_code >= 400, run_id
        pulled = PullObjectRequest(node=node, run_id=run_id, object_id=message["message_id"])
        assert intruder.ask("pull-object", pulled).status_code >= 400, run_id
    wait_until(lambda: (gateway.refusals() - before).total() == 6, "every refusal was logged")
    assert read_log(federation.link.home / "superlink.log").count(f"run_id={over}") >= 3


def test_it_gets_no_message_of_the_run_and_no_object_that_it_cannot_name(
    federation: GuardedFederation, intruder: Intruder, message: dict[str, Any]
) -> None:
    node, run_id = NodeId(node_id=intruder.number), message["run_id"]
    own = intruder.ask("pull-messages", PullMessagesRequest(node=node))
    assert not PullMessagesResponse.FromString(own.content).messages_list
    victim = NodeId(node_id=message["dst_node_id"])
    assert intruder.ask("pull-messages", PullMessagesRequest(node=victim)).status_code == 401
    name = "0" * 64
    pulled = intruder.ask(
        "pull-object", PullObjectRequest(node=node, run_id=run_id, object_id=name)
    )
    assert not PullObjectResponse.FromString(pulled.content).object_found
    request = PushObjectRequest(node=node, run_id=run_id, object_id=name, object_content=b"any")
    assert not PushObjectResponse.FromString(intruder.ask("push-object", request).content).stored


def test_it_cannot_answer_or_remove_the_message_of_another_node(
    federation: GuardedFederation, intruder: Intruder, message: dict[str, Any]
) -> None:
    victim, gateway = message["dst_node_id"], federation.gateway
    before = gateway.refusals()
    # As itself: the SuperLink accepts the request and drops the reply.
    answer = intruder.reply(message, sender=intruder.number)
    assert not PushMessagesResponse.FromString(answer.content).objects_to_push
    # As the other node.
    assert intruder.reply(message, sender=victim).status_code == 401
    request = ConfirmMessageReceivedRequest(
        node=NodeId(node_id=intruder.number),
        run_id=message["run_id"],
        message_object_id=message["message_id"],
    )
    assert intruder.ask("confirm-message-received", request).status_code == 401
    refused = {"no known key or certificate": 2}
    wait_until(lambda: gateway.refusals() - before == refused, "every refusal was logged")
    log = read_log(federation.link.home / "superlink.log")
    assert f"node {intruder.number} is refused: it sent a reply of node {victim}" in log
    assert f"node {intruder.number} is refused: it confirmed a message to node {victim}" in log


def test_the_run_ends_with_the_right_bits(
    federation: GuardedFederation, run: Service, nodes: list[Node], calm: bytes
) -> None:
    for _ in range(ROUNDS):
        train(nodes)
    assert run.end() == 0
    rounds = federation.rounds("attacked")
    assert [(line["clients"], line["dropped"]) for line in rounds] == [(2, 0)] * ROUNDS
    assert final_model(federation, "attacked") == calm
