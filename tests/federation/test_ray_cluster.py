"""A simulation in an existing Ray cluster of two nodes, as docs/ray-cluster.md describes."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from fixbn_flwr.app.local_superlink import SuperLink
from tests.support import roaming
from tests.support.machines import ROOT, free_port
from tests.support.pages import ROOT as APP
from tests.support.real_runs import PROGRAMS, kill_processes_of
from tests.support.waiting import wait_for_line
from tests.support.whole_app import rounds_of, run_app

pytestmark = pytest.mark.slow

ADDRESS = "127.0.0.1"
ROUNDS = 6
CONFIG: dict[str, Any] = {
    "task": "tests.support.roaming:TASK",
    "partition": "natural",
    "fraction-train": 1.0,
    "num-server-rounds": ROUNDS,
    "freeze-after": 3,
    "local-steps": 1,
    "batch-size": 8,
    "momentum": "local",
    "device": "cpu",
}


class InCluster(SuperLink):
    """A SuperLink whose simulations run in an existing cluster, set by RAY_ADDRESS."""

    def __init__(self, home: Path, cluster: str) -> None:
        super().__init__(home, free_port(ADDRESS))
        self._environment |= {"RAY_ADDRESS": cluster, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path, since Ray's socket paths are long; ends its processes."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        kill_processes_of(Path(folder))


@pytest.fixture
def cluster(home: Path) -> Iterator[str]:
    """Start a cluster of two nodes with one core each, on loopback; return its address."""
    port = free_port(ADDRESS)
    address = f"{ADDRESS}:{port}"
    head = ["--head", f"--port={port}", f"--ray-client-server-port={free_port(ADDRESS)}"]
    head.append("--include-dashboard=false")
    with ExitStack() as nodes:
        for name, options in (("head", head), ("worker", [f"--address={address}"])):
            command = [str(PROGRAMS / "ray"), "start", *options, "--block", "--num-cpus=1"]
            command += ["--disable-usage-stats", f"--node-ip-address={ADDRESS}"]
            command += [f"--temp-dir={home / name}", f"--object-store-memory={200 * 10**6}"]
            command += [f"--dashboard-agent-listen-port={free_port(ADDRESS)}"]
            log = home / f"{name}.log"
            with log.open("wb") as file:
                node = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            nodes.callback(node.wait)
            nodes.callback(node.terminate)
            wait_for_line(log, "Ray runtime started", node)
        yield address


def test_clients_find_their_momentum_on_every_node(
    home: Path, cluster: str, tmp_path: Path
) -> None:
    places, runs = tmp_path / "places", tmp_path / "runs"
    places.mkdir()
    config = CONFIG | {"data-dir": str(places)}
    federation = {"num-supernodes": roaming.CLIENTS, "client-resources-num-cpus": 1}
    lines: list[str] = []
    (home / "flwr").mkdir()
    link = InCluster(home / "flwr", cluster)
    link.start()
    try:
        failure = link.run(APP, config | {"output-dir": str(runs)}, federation, lines.append)
    finally:
        link.stop()
    assert failure is None, "\n".join(lines)
    (folder,) = runs.iterdir()
    assert [line["clients"] for line in rounds_of(folder)] == [roaming.CLIENTS] * ROUNDS

    visits = [roaming.read(places, client) for client in range(roaming.CLIENTS)]
    assert [len(nodes) for nodes in visits] == [ROUNDS] * roaming.CLIENTS
    assert len({node for nodes in visits for node in nodes}) == 2
    moves = sum(before != after for nodes in visits for before, after in pairwise(nodes))
    assert moves >= ROUNDS - 1  # at least one client a round

    torch.set_num_threads(1)
    in_memory = run_app(tmp_path / "here", roaming.CLIENTS, config)
    model = "final.safetensors"
    assert (folder / model).read_bytes() == (in_memory / model).read_bytes()
