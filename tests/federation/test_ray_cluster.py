"""A simulation in a Ray cluster of two nodes that was there before, as docs/ray-cluster.md says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import roaming
import torch
from real_runs import PROGRAMS, processes_of
from whole_app import rounds_of, run_app

from fixbn_flwr.app.cli import APP
from fixbn_flwr.app.superlink import free_port

pytestmark = pytest.mark.slow

TIMEOUT = 600.0  # seconds for what takes some twenty on an idle machine
ROUNDS = 6
CONFIG: dict[str, Any] = {
    "task": "roaming:TASK",
    "partition": "natural",
    "fraction-train": 1.0,
    "num-server-rounds": ROUNDS,
    "freeze-after": 3,
    "local-steps": 1,
    "batch-size": 8,
    "momentum": "local",
    "device": "cpu",
}


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder whose processes end with it; short, since Ray puts sockets deep below it."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        for number in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + 10
            while (left := processes_of(Path(folder))) and time.monotonic() < end:
                for process in left:
                    with suppress(ProcessLookupError):
                        os.kill(process, number)
                time.sleep(0.5)


@pytest.fixture
def environment(home: Path) -> dict[str, str]:
    return os.environ | {
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(APP)]),
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
        "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


@pytest.fixture
def cluster(home: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a cluster of two nodes of one core each; Ray's own programs, on loopback."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    head = ["--head", f"--port={port}", f"--ray-client-server-port={free_port()}"]
    head.append("--include-dashboard=false")
    with ExitStack() as nodes:
        for name, where in (("head", head), ("worker", [f"--address={address}"])):
            command = ["ray", "start", *where, "--block", "--num-cpus=1", "--disable-usage-stats"]
            command += ["--node-ip-address=127.0.0.1", f"--object-store-memory={200 * 10**6}"]
            command += [f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={home / name}"]
            log = home / f"{name}.log"
            with log.open("wb") as file:
                node = subprocess.Popen(
                    command, env=environment, stdout=file, stderr=subprocess.STDOUT
                )
            nodes.callback(node.wait)
            nodes.callback(node.terminate)
            end = time.monotonic() + TIMEOUT
            while "Ray runtime started" not in log.read_text():
                assert node.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
        yield address


def test_clients_find_their_momentum_on_whichever_node_they_run(
    home: Path, environment: dict[str, str], cluster: str, tmp_path: Path
) -> None:
    places, runs = tmp_path / "places", tmp_path / "runs"
    places.mkdir()
    config = CONFIG | {"data-dir": str(places)}
    given = config | {"output-dir": str(runs)}
    command = ["flwr", "run", str(APP), "--stream", "--run-config"]
    command.append(" ".join(f"{key}={json.dumps(value)}" for key, value in given.items()))
    command.append("--federation-config")
    command.append(f"num-supernodes={roaming.CLIENTS} client-resources-num-cpus=1")
    answer = subprocess.run(
        command,
        cwd=home,
        env=environment | {"RAY_ADDRESS": cluster},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert list(runs.glob("*/final.safetensors")), answer.stdout
    (folder,) = runs.iterdir()
    assert [line["clients"] for line in rounds_of(folder)] == [roaming.CLIENTS] * ROUNDS

    visits = [roaming.read(places, client) for client in range(roaming.CLIENTS)]
    assert [len(nodes) for nodes in visits] == [ROUNDS] * roaming.CLIENTS
    assert len({node for nodes in visits for node in nodes}) == 2
    moves = sum(before != after for nodes in visits for before, after in pairwise(nodes))
    assert moves >= ROUNDS - 1  # at least one client a round

    torch.set_num_threads(1)
    here = run_app(tmp_path / "here", roaming.CLIENTS, config)
    for model in ("final.safetensors", "best.safetensors"):
        assert (folder / model).read_bytes() == (here / model).read_bytes(), model

