"""During a run a node's key is revoked and replaced, and the gateway's certificate is renewed.

The tests depend on their order and share one run. Its nodes train when a test orders it, see
tests/support/ordered.py.
"""

from __future__ import annotations

import os
import re
import signal
import ssl
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography import x509

from tests.support.federations import ADDRESS, Node
from tests.support.gateways import GuardedFederation, needs_nginx
from tests.support.machines import Service, switch_off
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, needs_nginx]

ROUNDS, FREEZE_AFTER = 4, 2


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedFederation]:
    federation = GuardedFederation(tmp_path_factory.mktemp("renewal"))
    yield federation
    switch_off(federation.machines)


@pytest.fixture(scope="module")
def a(federation: GuardedFederation) -> Node:
    return federation.add("hospital-a", "0/2")


@pytest.fixture(scope="module")
def b(federation: GuardedFederation) -> Node:
    return federation.add("hospital-b", "1/2")


@pytest.fixture(scope="module")
def state() -> SimpleNamespace:
    """State that one test stores for a later one."""
    return SimpleNamespace()


@pytest.fixture(scope="module")
def run(federation: GuardedFederation, a: Node, b: Node, state: SimpleNamespace) -> Service:
    """Start the run; its first round has ended, and both nodes train in the second."""
    state.services = [node.start() for node in (a, b)]
    for service in state.services:
        service.wait_for("SuperNode ID: ")
    run = federation.start_run(
        "run", num_server_rounds=ROUNDS, freeze_after=FREEZE_AFTER, min_clients=1
    )
    a.order("train")
    b.order("train")
    run.wait_for(rf"(?m)^round +1/{ROUNDS}")
    state.momentum = b.momentum
    for node in (a, b):
        node.wait_until_it_trains()
    return run


def served(federation: GuardedFederation) -> int:
    """Return the serial number of the certificate that nodes see."""
    pem = ssl.get_server_certificate((ADDRESS, federation.gateway.port))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def test_the_gateway_takes_a_renewed_certificate_and_cuts_off_slow_uploads(
    federation: GuardedFederation, run: Service
) -> None:
    link, before = federation.link, served(federation)
    link.run("mkdir expired && mv certificates/superlink.* expired")
    link.run(f"deploy/make-certificates certificates --host {ADDRESS}")
    with federation.gateway.connect() as slow:
        slow.sendall(
            b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: superlink\r\n"
            b"Content-Length: 9999999\r\n\r\n"
        )

        def is_cut_off() -> bool:
            try:
                slow.sendall(b"\0")
            except OSError:
                return True
            return False

        def is_renewed() -> bool:
            assert not is_cut_off()
            return served(federation) != before

        os.kill(int((link.home / ".fixbn" / "gateway" / "nginx.pid").read_text()), signal.SIGHUP)
        wait_until(is_renewed, "the new certificate was served")
        wait_until(is_cut_off, "the request was cut off")


def test_a_revoked_node_is_out_at_once_and_the_others_train_on(
    federation: GuardedFederation, run: Service, a: Node, b: Node, state: SimpleNamespace
) -> None:
    revoked = federation.on_superlink("revoke", "hospital-b")
    assert revoked == f"hospital-b is revoked; it was node {federation.numbers['hospital-b']}.\n"
    a.order("train")
    run.wait_for(rf"(?m)^round +2/{ROUNDS}")
    number = federation.numbers["hospital-b"]
    assert re.search(rf"round 2: reply dropped, client {number}: .*hospital-b", run.output)
    # Its next request is refused. It tries to connect for a while, then says so.
    service = state.services[1]
    assert service.end() == 1
    assert service.output.splitlines()[-1].startswith("Error: the SuperLink refuses hospital-b, ")
    assert federation.gateway.refusals("127.0.0.1")["no known key or certificate"] > 0
    again = federation.on_superlink("revoke", "hospital-b")
    assert again == f"hospital-b is already revoked; it was node {number}.\n"
    registered = federation.on_superlink("register", "hospital-b")
    assert registered.endswith("If its key was revoked, the node needs a new one.\n")


def test_with_a_new_key_the_node_keeps_its_momentum_and_the_run_goes_on(
    federation: GuardedFederation, run: Service, a: Node, b: Node, state: SimpleNamespace
) -> None:
    b.power_failure()
    federation.make_key(b.machine, "hospital-b-2")
    federation.on_superlink("register", "hospital-b-2")
    b.start(key="hospital-b-2").wait_for("SuperNode ID: ", count=2)
    a.order("train")
    run.wait_for(rf"(?m)^round +3/{ROUNDS}")
    a.order("train")
    b.order("nothing")
    assert run.end() == 0
    rounds = federation.rounds("run")
    assert [(line["clients"], line["dropped"]) for line in rounds] == [
        (2, 0),
        (1, 1),
        (1, 0),
        (2, 0),
    ]
    # A step with a gradient of zero multiplies the buffers of round 1 by the momentum, 0.9.
    for name, buffer in state.momentum.items():
        assert np.allclose(b.momentum[name], 0.9 * buffer, rtol=1e-5, atol=0), name
    assert any(np.any(buffer) for buffer in state.momentum.values())


def test_the_nodes_stay_connected_when_the_superlink_starts_with_the_new_certificate(
    federation: GuardedFederation, run: Service, a: Node, b: Node
) -> None:
    federation.superlink.stop()
    federation.start_superlink()
    again = federation.start_run("again", num_server_rounds=1, freeze_after=1.0)
    a.order("train")
    b.order("train")
    assert again.end() == 0
    assert federation.rounds("again")[0]["clients"] == 2
