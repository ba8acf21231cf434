"""Faults on real machines: the run continues or ends, and one line names the fault and the client.

All tests use one federation and depend on their order. Most of them also share one run. The nodes
train when a test orders it, see tests/support/ordered.py.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.federations import ADDRESS, Federation, Node
from tests.support.machines import Service, round_lines, switch_off
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ROUNDS, FREEZE_AFTER = 6, 2
ROUND_TIMEOUT = 150.0  # seconds; a round of new workers takes about 20 on two idle cores


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    federation = Federation(tmp_path_factory.mktemp("faults"))
    yield federation
    switch_off(federation.machines)


@pytest.fixture(scope="module")
def nodes(federation: Federation) -> dict[str, Node]:
    """Return two nodes that have joined, and one that joins later."""
    nodes = {
        name: federation.add(name, f"{number}/3")
        for number, name in enumerate(["hospital-a", "hospital-b", "hospital-c"])
    }
    services = [nodes[name].start() for name in ("hospital-a", "hospital-b")]
    for service in services:
        service.wait_for("SuperNode ID: ")
    return nodes


@pytest.fixture(scope="module")
def a(nodes: dict[str, Node]) -> Node:
    return nodes["hospital-a"]


@pytest.fixture(scope="module")
def b(nodes: dict[str, Node]) -> Node:
    return nodes["hospital-b"]


@pytest.fixture(scope="module")
def c(nodes: dict[str, Node]) -> Node:
    return nodes["hospital-c"]


@pytest.fixture(scope="module")
def run(federation: Federation, nodes: dict[str, Node]) -> Service:
    return federation.start_run("run", num_server_rounds=ROUNDS, freeze_after=FREEZE_AFTER)


@pytest.fixture(scope="module")
def unregistered(federation: Federation) -> Service:
    """Start a node with an unregistered key; it retries for more than a minute."""
    return federation.add("stranger", "0/3", register=False).start()


@pytest.fixture(scope="module")
def state() -> SimpleNamespace:
    """State that one test stores for a later one."""
    return SimpleNamespace()


def wait_for_round(run: Service, number: int) -> str:
    """Wait for the end of a round; return its line."""
    run.wait_for(rf"(?m)^round +{number}/{ROUNDS}.*$")
    return round_lines(run.output)[number - 1]


def test_plain_text_is_refused_at_the_tls_port(federation: Federation) -> None:
    with socket.create_connection((ADDRESS, federation.port), timeout=30) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not connection.recv(100).startswith(b"HTTP")
    result = federation.link.run(
        f"deploy/start-supernode --insecure --superlink {ADDRESS}:{federation.port} --data data",
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == (
        f"Error: the SuperLink at {ADDRESS}:{federation.port} uses TLS: set --ca and --key instead "
        "of --insecure."
    )


def test_a_round_ends_without_a_node_that_was_killed(
    run: Service, a: Node, b: Node, state: SimpleNamespace, unregistered: Service
) -> None:
    a.order("train")
    b.order("train")
    wait_for_round(run, 1)
    state.momentum = b.momentum
    b.wait_until_it_trains()
    b.power_failure()
    a.order("train")
    number = re.search(r"client (\d+) is hospital-b", run.output)
    assert number
    run.wait_for(
        rf"round 2: reply dropped, client {number[1]}: it failed \(code 5\): hospital-b: "
        ".*Node Unavailable"
    )
    wait_for_round(run, 2)
    state.service = b.start()


def test_an_unregistered_key_is_refused(unregistered: Service) -> None:
    unregistered.wait_for(
        "stranger is refused: its key is not registered, or it was killed less than"
    )
    assert unregistered.end() == 1
    assert unregistered.output.splitlines()[-1] == (
        "Error: the SuperLink refuses stranger, because its key is not registered: run `register "
        "stranger.pub` on the SuperLink's machine, then start this node again. If it is "
        "registered, correct this machine's clock."
    )


def test_a_restarted_node_rejoins_with_its_momentum_buffers(
    federation: Federation, run: Service, a: Node, b: Node, state: SimpleNamespace
) -> None:
    state.service.wait_for("SuperNode ID: ", count=2)
    a.order("train")
    b.order("nothing")
    wait_for_round(run, 3)
    clients = [(line["clients"], line["dropped"]) for line in federation.rounds("run")]
    assert clients == [(2, 0), (1, 1), (2, 0)]
    # A step with a gradient of zero multiplies the buffers of round 1 by the momentum, 0.9.
    for name, buffer in state.momentum.items():
        assert np.allclose(b.momentum[name], 0.9 * buffer, rtol=1e-5, atol=0), name
    assert any(np.any(buffer) for buffer in state.momentum.values())


def test_a_node_that_joins_in_calibration_starts_with_zero_momentum_and_frozen_statistics(
    federation: Federation, run: Service, a: Node, b: Node, c: Node
) -> None:
    c.start().wait_for("SuperNode ID: ")
    a.order("train")
    b.order("train")
    wait_for_round(run, 4)
    a.order("train")
    b.order("train")
    c.order("nothing")
    wait_for_round(run, 5)
    assert re.search(r"client \d+ \(hospital-c\) joined the run", run.output)
    assert federation.rounds("run")[4]["clients"] == 3
    assert [np.any(buffer) for buffer in c.momentum.values()] == [False] * 6
    # A changed statistic would cause a warning: the client returned the ones that it received.
    assert "frozen" not in run.output.partition("round 4")[2]


def test_a_round_in_which_all_clients_fail_leaves_the_model_unchanged(
    federation: Federation, run: Service, a: Node, b: Node, c: Node
) -> None:
    a.order("fail")
    b.order("fail")
    c.order("flood")
    wait_for_round(run, 6)
    for node, reason in ((a, "the disk"), (b, "the disk"), (c, "its reply has more than")):
        assert re.search(
            rf"round 6: reply dropped, client \d+: .*{node.name}: {reason}", run.output
        )
    assert "round 6: no client returned a usable update; the model stays as it is" in run.output
    before, after = federation.rounds("run")[4:6]
    assert (after["clients"], after["dropped"]) == (0, 3)
    assert after["test_loss"] == before["test_loss"]


def test_a_round_ends_without_a_client_that_times_out(
    federation: Federation, run: Service, a: Node, b: Node, c: Node
) -> None:
    assert run.end() == 0
    late = federation.start_run(
        "late",
        num_server_rounds=1,
        freeze_after=1.0,
        round_timeout=ROUND_TIMEOUT,
        min_clients=3,
    )
    a.order("train")
    c.order("train")
    timed_out = r"client \d+ \(hospital-b\) timed out after 15\d seconds: the round ends without "
    late.wait_for(timed_out)
    assert late.end() == 0
    (line,) = federation.rounds("late")
    assert (line["clients"], line["dropped"]) == (2, 1)
    assert list(federation.statuses().values()) == ["finished:completed"] * 2
    b.order("train")  # too late


def test_a_superlink_that_is_killed_keeps_its_nodes_and_loses_its_run(
    federation: Federation, a: Node, b: Node, c: Node
) -> None:
    lost = federation.start_run("lost", num_server_rounds=2, freeze_after=1, min_clients=3)
    for node in (a, b, c):
        node.wait_until_it_trains()
    federation.link.kill("flower-superlink")
    assert lost.end() == 1
    federation.link.switch_off()
    federation.start_superlink()
    for node in (a, b, c):
        node.order("train")  # of the lost run
    again = federation.start_run("again", num_server_rounds=1, freeze_after=1.0, min_clients=3)
    for node in (a, b, c):
        node.order("train")
    assert again.end() == 0
    # Flower reports the lost run as failed after it has missed some heartbeats.
    statuses = ["finished:completed"] * 3 + ["finished:failed"]
    wait_until(
        lambda: sorted(federation.statuses().values()) == statuses, "the lost run to be failed"
    )
    assert federation.rounds("again")[0]["clients"] == 3
    # The command that deploy/README.md uses to find the newest run.
    newest = federation.link.run("flwr ls federation --limit 1 --format json").stdout
    number = re.search(r"started run (\d+)", again.output)
    assert number
    assert number[1] in newest
