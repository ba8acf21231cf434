"""Keys that are unknown, revoked, in use or another node's, and requests that are replayed.

The requests go through the gateway, as those of the honest nodes, so this also shows that it
passes on headers and bodies unchanged.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.control_pb2 import UnregisterNodeRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node as NodeId
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from tests.support.federations import ADDRESS
from tests.support.gateways import GuardedFederation, needs_nginx
from tests.support.machines import switch_off
from tests.support.node_requests import Key, key_of, post
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, needs_nginx]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedFederation]:
    federation = GuardedFederation(tmp_path_factory.mktemp("keys"))
    yield federation
    switch_off(federation.machines)


@pytest.fixture(scope="module")
def attacker(federation: GuardedFederation) -> Iterator[httpx.Client]:
    with federation.gateway.client(federation.gateway.port) as client:
        yield client


def activate(client: httpx.Client, key: Key) -> httpx.Response:
    request = ActivateNodeRequest(
        public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=30
    )
    return post(client, "activate-node", request, key)


def heartbeat(client: httpx.Client, number: int, key: Key) -> int:
    request = SendNodeHeartbeatRequest(node=NodeId(node_id=number), heartbeat_interval=30)
    return post(client, "send-node-heartbeat", request, key).status_code


def test_only_the_registered_key_of_a_node_speaks_for_it(
    federation: GuardedFederation, attacker: httpx.Client
) -> None:
    honest, other = key_of(federation, "hospital-a"), key_of(federation, "hospital-b")
    unknown = ec.generate_private_key(ec.SECP384R1())
    number = ActivateNodeResponse.FromString(activate(attacker, honest).content).node_id
    assert heartbeat(attacker, number, honest) == 200
    # Unknown to the SuperLink, registered for another node, and in use.
    assert re.search("2004", activate(attacker, unknown).text)
    assert heartbeat(attacker, number, unknown) == 401
    assert heartbeat(attacker, number, other) == 401
    duplicate = activate(attacker, honest)
    assert duplicate.is_client_error
    assert re.search("2004", duplicate.text)
    gateway = federation.gateway
    wait_until(lambda: gateway.refusals().total() == 4, "every refusal was logged")
    assert gateway.refusals()["no known key or certificate"] == 2
    # Revoked.
    with federation.gateway.client(federation.port) as control:
        request = UnregisterNodeRequest(node_id=number)
        revoked = control.post("/v1/control/unregister-node", content=request.SerializeToString())
        assert revoked.status_code == 200, revoked.text
    assert heartbeat(attacker, number, honest) == 401
    assert re.search("2004", activate(attacker, honest).text)


class Tap:
    """Passes one connection on to a port and records the bytes that the client sends."""

    def __init__(self, target: int) -> None:
        self.recorded = b""
        self._target = target
        self._listener = socket.create_server((ADDRESS, 0))
        self.port = self._listener.getsockname()[1]
        self._pass_on = threading.Thread(target=self._run)
        self._pass_on.start()

    def _run(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection((ADDRESS, self._target))

        def back() -> None:
            while data := far.recv(65536):
                near.sendall(data)

        answers = threading.Thread(target=back)
        answers.start()
        while data := near.recv(65536):
            self.recorded += data
            far.sendall(data)
        far.shutdown(socket.SHUT_RDWR)
        answers.join()
        for each in (near, far, self._listener):
            each.close()

    def end(self) -> None:
        self._pass_on.join()


def test_a_recorded_connection_cannot_be_replayed(federation: GuardedFederation) -> None:
    key = key_of(federation, "hospital-c")
    port = federation.gateway.port

    def received() -> int:
        return (federation.link.home / "superlink.log").read_text().count("run_id=12345")

    with federation.gateway.client(port) as node:
        number = ActivateNodeResponse.FromString(activate(node, key).content).node_id
    request = GetRunRequest(node=NodeId(node_id=number), run_id=12345)
    tap = Tap(port)
    with federation.gateway.client(tap.port) as node:
        post(node, "get-run", request, key)
    tap.end()
    once = received()
    assert once > 0
    with socket.create_connection((ADDRESS, port), timeout=60) as replay:
        replay.sendall(tap.recorded)
        with suppress(ConnectionError):
            while replay.recv(65536):  # until the gateway closes it
                pass
    assert received() == once
