"""A federation whose nodes are in two networks and share no file, home or loopback interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.federations import Federation, Node
from tests.support.machines import switch_off
from tests.support.namespaces import NamespaceError, two_networks

pytestmark = pytest.mark.slow

NAMES = ("hospital-a", "hospital-b")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder: Path = tmp_path_factory.mktemp("networks")
    try:
        with two_networks() as network:
            federation = Federation(folder, network, nodes=len(NAMES))
            try:
                yield federation
            finally:
                switch_off(federation.machines)
    except NamespaceError as error:
        pytest.skip(f"no network namespaces here: {error}")


@pytest.fixture(scope="module")
def nodes(federation: Federation) -> list[Node]:
    return [federation.add(name, f"{number}/2") for number, name in enumerate(NAMES)]


def test_no_machine_can_reach_the_files_or_the_network_of_another(
    federation: Federation, nodes: list[Node]
) -> None:
    for machine in federation.machines:
        assert machine.run(f"ls {federation.folder}").stdout.split() == [machine.address]
    a, b = (node.machine for node in nodes)
    connect = "python -c \"import socket; socket.create_connection(('{}', {}), 5)\""
    port = federation.port
    a.run(connect.format("10.0.1.1", port))
    b.run(connect.format("10.0.2.1", port))
    for machine, address in ((a, "10.0.2.1"), (a, b.address), (a, "127.0.0.1"), (b, a.address)):
        result = machine.run(connect.format(address, port), check=False)
        assert "OSError" in result.stdout or "Refused" in result.stdout, result.stdout


def test_a_run_completes_across_two_networks(federation: Federation, nodes: list[Node]) -> None:
    for node in nodes:
        node.start().wait_for("SuperNode ID: ")
    run = federation.start_run("run", num_server_rounds=2, freeze_after=1)
    for _ in range(2):
        for node in nodes:
            node.order("train")
    assert run.end() == 0
    assert list(federation.statuses().values()) == ["finished:completed"]
    rounds = federation.rounds("run")
    assert [(line["phase"], line["clients"]) for line in rounds] == [
        ("exploration", 2), ("calibration", 2)
    ]  # fmt: skip
    for node in nodes:
        assert node.momentum
