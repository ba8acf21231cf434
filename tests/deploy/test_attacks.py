"""Attacks through a gateway's public port during a run: the same bits result as without them.

The tests depend on their order. Two honest nodes train when a test orders it, see
tests/support/ordered.py, so every attack happens during a round.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from flwr.superlink.routers.control.router import router as control
from flwr.superlink.routers.fleet.router import router as fleet

from tests.support.federations import ADDRESS, Node, final_model, train
from tests.support.gateways import ATTACKER, GuardedFederation, needs_nginx
from tests.support.machines import Service, switch_off
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, needs_nginx]

ROUNDS = 2
CONNECTIONS = 200
CONTROL = sorted(route.path for route in control.routes)  # type: ignore[attr-defined]
UNUSED = ["/v1/fleet/register-node", "/v1/fleet/unregister-node"]
ELSEWHERE = ["/", "/docs", "/openapi.json", "/v1/runtime/acquire-task", *UNUSED]
UPLOAD = (
    "POST /v1/fleet/push-object HTTP/1.1\r\nHost: superlink\r\n"
    "Content-Type: application/x-protobuf\r\nContent-Length: {size}\r\n\r\n"
)
LARGEST = 16 * 2**20


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedFederation]:
    federation = GuardedFederation(tmp_path_factory.mktemp("attacks"))
    yield federation
    switch_off(federation.machines)


@pytest.fixture(scope="module")
def nodes(federation: GuardedFederation) -> list[Node]:
    nodes = [federation.add(f"hospital-{'ab'[number]}", f"{number}/2") for number in range(2)]
    for service in [node.start() for node in nodes]:
        service.wait_for("SuperNode ID: ")
    return nodes


def start(federation: GuardedFederation, name: str) -> Service:
    return federation.start_run(name, num_server_rounds=ROUNDS, freeze_after=1)


@pytest.fixture(scope="module")
def run(federation: GuardedFederation, nodes: list[Node]) -> Service:
    """Start the run that is attacked; its first round has begun."""
    run = start(federation, "attacked")
    for node in nodes:
        node.wait_until_it_trains()
    return run


def test_the_nodes_train_through_the_gateway(
    federation: GuardedFederation, nodes: list[Node]
) -> None:
    calm = start(federation, "calm")
    for _ in range(ROUNDS):
        train(nodes)
    assert calm.end() == 0
    assert [line["clients"] for line in federation.rounds("calm")] == [2] * ROUNDS
    assert not federation.gateway.refusals("127.0.0.1")


def test_the_public_port_serves_only_what_supernodes_request(
    federation: GuardedFederation, run: Service
) -> None:
    assert {"/v1/control/start-run", "/v1/control/register-node", "/v1/control/stop-run"} <= {
        *CONTROL
    }
    assert "/v1/control/stream-logs" in CONTROL
    assert {*UNUSED} < {route.path for route in fleet.routes}  # type: ignore[attr-defined]
    gateway = federation.gateway
    before = gateway.refusals()
    detours = [
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "//v1/control/list-runs",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/v1/fleet/pull-messages%0a",
        "/V1/CONTROL/list-runs",
    ]
    paths = [*CONTROL, *ELSEWHERE, *detours]
    with gateway.client(gateway.port) as attacker:
        assert {path: attacker.post(path).status_code for path in paths} == dict.fromkeys(
            paths, 403
        )
        assert attacker.get("/v1/fleet/pull-messages").status_code == 403
    wait_until(
        lambda: (gateway.refusals() - before)["not served here"] == len(paths) + 1,
        "every refusal was logged in one line",
    )
    with gateway.client(federation.port) as neighbour:  # the same request on loopback
        assert neighbour.post("/v1/control/list-runs").status_code == 200


def test_the_scripts_cannot_register_a_key_through_the_public_port(
    federation: GuardedFederation, run: Service
) -> None:
    link = federation.link
    link.run("deploy/make-node-key keys/intruder")
    tried = link.run(
        f"deploy/register keys/intruder.pub --superlink {ADDRESS}:{federation.gateway.port} "
        "--ca certificates/ca.crt",
        check=False,
    )
    assert tried.returncode == 1
    assert "was not registered" in tried.stdout


def test_only_an_administrators_certificate_opens_the_admin_port(
    federation: GuardedFederation, run: Service
) -> None:
    gateway = federation.gateway
    before = gateway.refusals()
    for certificate, status in (("admin-alice", 200), ("", 401), ("superlink", 401)):
        with gateway.client(gateway.admin_port, certificate) as client:
            assert client.post("/v1/control/list-runs").status_code == status, certificate
    with gateway.client(gateway.admin_port, "admin-alice") as client:
        assert client.post("/v1/runtime/acquire-task").status_code == 403
    refused = {"no known key or certificate": 2, "not served here": 1}
    wait_until(lambda: gateway.refusals() - before == refused, "every refusal was logged")
    log = (federation.link.home / ".fixbn" / "gateway" / "admin.log").read_text()
    assert f'{ATTACKER} CN=alice: 200 "POST /v1/control/list-runs HTTP/1.1"' in log


def test_plain_text_gets_no_answer(federation: GuardedFederation, run: Service) -> None:
    before = federation.gateway.refusals()
    with socket.create_connection(
        (ADDRESS, federation.gateway.port), timeout=60, source_address=(ATTACKER, 0)
    ) as connection:
        connection.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: superlink\r\n\r\n")
        with suppress(ConnectionError):
            assert connection.recv(100) == b""
    gateway = federation.gateway
    wait_until(lambda: gateway.refusals() - before == {"plain text": 1}, "the refusal was logged")


@pytest.mark.parametrize("announced", [True, False])
def test_an_upload_that_is_ten_times_too_large_is_refused(
    federation: GuardedFederation, run: Service, announced: bool
) -> None:
    gateway = federation.gateway
    before = gateway.refusals()
    if announced:
        with gateway.connect() as connection:
            connection.sendall(UPLOAD.format(size=10 * LARGEST).encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    else:  # in chunks, so that the gateway learns the size as it goes

        def chunks() -> Iterator[bytes]:
            for _ in range(10):
                yield bytes(LARGEST)

        with gateway.client(gateway.port) as attacker:
            try:
                answer = attacker.post("/v1/fleet/push-object", content=chunks())
                assert answer.status_code == 413
            except OSError:
                pass
    wait_until(lambda: (gateway.refusals() - before)["too large"] == 1, "the refusal was logged")


def test_others_train_on_while_one_node_opens_200_connections(
    federation: GuardedFederation, run: Service, nodes: list[Node]
) -> None:
    gateway, before = federation.gateway, federation.gateway.refusals()
    context, finished = gateway.context(), threading.Event()
    with ExitStack() as stack:
        held = []
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(gateway.connect(context))
            connection.sendall(UPLOAD.format(size=LARGEST).encode())
            held.append(connection)

        def drip() -> None:  # so that none of them times out
            while not finished.wait(1):
                for connection in list(held):
                    try:
                        connection.sendall(b"\0")
                    except OSError:
                        held.remove(connection)

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            wait_until(
                lambda: (gateway.refusals() - before).total() >= CONNECTIONS - 20,
                "all but 20 were refused",
            )
            train(nodes)
            run.wait_for(rf"(?m)^round +1/{ROUNDS}")
        finally:
            finished.set()
            dripping.join()
        assert 0 < len(held) <= 20  # still connected, and nobody else is affected
        reasons = gateway.refusals() - before
    assert reasons.keys() <= {"too many connections", "too many requests"}
    assert CONNECTIONS - 20 <= reasons.total() < CONNECTIONS


def test_an_upload_that_never_ends_is_cut_off(
    federation: GuardedFederation, run: Service, nodes: list[Node]
) -> None:
    gateway, before = federation.gateway, federation.gateway.refusals()
    with gateway.connect() as header, gateway.connect() as body:
        header.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: super")
        body.sendall(UPLOAD.format(size=LARGEST).encode() + b"\0")
        for connection in (header, body):
            with suppress(ConnectionError):
                assert connection.recv(100) == b""
    wait_until(lambda: (gateway.refusals() - before)["too slow"] == 2, "both were logged")


def test_the_attacked_run_ends_with_the_right_bits(
    federation: GuardedFederation, run: Service, nodes: list[Node]
) -> None:
    train(nodes)
    assert run.end() == 0
    assert [line["clients"] for line in federation.rounds("attacked")] == [2] * ROUNDS
    assert final_model(federation, "attacked") == final_model(federation, "calm")
    # Of the honest nodes' address, only deploy/register was refused, see above.
    assert federation.gateway.refusals("127.0.0.1") == {"not served here": 1}
    assert set(federation.statuses().values()) == {"finished:completed"}
