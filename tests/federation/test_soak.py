"""Long, with many clients of whom a fifth fails each round: memory does not grow, it learns."""

from __future__ import annotations

import json
import os
import statistics
import threading
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fixbn_flwr.app import client_app
from fixbn_flwr.app.cli import APP
from fixbn_flwr.app.local_superlink import local_superlink
from fixbn_flwr.app.runs.reader import read_metrics
from fixbn_flwr.testing import SerializingGrid
from simulation.benchmarks.process_monitor import descendants
from tests.support.whole_app import serve

pytestmark = pytest.mark.slow

CLIENTS, ROUNDS, ASKED = 200, 300, 5
CONFIG: dict[str, Any] = {
    "partition": "iid",  # seven images each
    "batch-size": 4,
    "num-server-rounds": ROUNDS,
    "fraction-train": ASKED / CLIENTS,
    "evaluate-every": 50,
    "device": "cpu",
}

FAILING = '''"""The app's clients, of whom a fifth, another one in every round, fails."""

import random

from flwr.clientapp import ClientApp

from fixbn_flwr.app.client_app import client_fn
from fixbn_flwr import numpy_client_mod


def failing_mod(message, context, call_next):
    config = message.content.config_records.get("config", {})
    where = (config.get("server-round"), context.node_config["partition-id"])
    if message.metadata.message_type == "train" and random.Random(str(where)).random() < 0.2:
        raise RuntimeError("this client fails now and then")
    return call_next(message, context)


app = ClientApp(client_fn=client_fn, mods=[failing_mod, numpy_client_mod])
'''


def failing_app(folder: Path) -> Path:
    """Make a Flower app of ours with such clients."""
    folder.mkdir()
    (folder / "failing.py").write_text(FAILING)
    ours = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config = "\n".join(f"{key} = {json.dumps(value)}" for key, value in ours.items())
    (folder / "pyproject.toml").write_text(
        "[project]\nname = 'soak'\nversion = '1.0.0'\n"
        "[tool.flwr.app]\npublisher = 'fixbn'\nfab-include = ['failing.py']\n"
        "[tool.flwr.app.components]\nserverapp = 'fixbn_flwr.app.server_app:app'\n"
        f"clientapp = 'failing:app'\n[tool.flwr.app.config]\n{config}\n"
    )
    return folder


class Memory(threading.Thread):
    """Notes how many megabytes the server and the workers hold, by the rounds that are done."""

    def __init__(self, rounds_file: Path) -> None:
        super().__init__(daemon=True)
        self.rounds_file = rounds_file
        self.seen: dict[str, list[tuple[int, float]]] = {"server": [], "worker": []}
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.5):
            if not self.rounds_file.exists():
                continue
            done = self.rounds_file.read_bytes().count(b"\n")
            ours = descendants()
            for role, samples in self.seen.items():
                held = [resident(process.pid) for process in ours if process.role == role]
                if held:
                    samples.append((done, max(held)))

    def between(self, role: str, first: int, last: int) -> float:
        """The median of what the largest process of a role held in some rounds."""
        return statistics.median(mb for done, mb in self.seen[role] if first <= done <= last)


def resident(process: int) -> float:
    """The megabytes of a process that are its own: shared pages of Ray's store do not count."""
    with suppress(OSError, ValueError, IndexError):
        pages = (Path("/proc") / str(process) / "statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


def test_two_hundred_clients_three_hundred_rounds(tmp_path: Path) -> None:
    runs, state = tmp_path / "runs", tmp_path / "state"
    where = {"output-dir": str(runs), "run-name": "soak", "state-dir": str(state)}
    federation = {
        "num-supernodes": CLIENTS,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": 2,
    }
    memory, log = Memory(runs / "soak" / "metrics.jsonl"), list[str]()
    memory.start()
    with local_superlink() as link:
        failure = link.run(failing_app(tmp_path / "app"), CONFIG | where, federation, log.append)
    memory.over.set()
    assert failure is None, "\n".join(log[-40:])
    rounds = read_metrics(runs / "soak")
    assert len(rounds) == ROUNDS
    assert all(line.clients + line.dropped == ASKED for line in rounds)
    failed = sum(line.dropped for line in rounds) / (ASKED * ROUNDS)
    assert 0.17 < failed < 0.23
    assert "this client fails now and then" in "\n".join(log)

    for role in ("server", "worker"):
        early, late = memory.between(role, 30, 90), memory.between(role, 240, 300)
        print(f"{role}: {early:.0f} MB in rounds 30 to 90, {late:.0f} MB in rounds 240 to 300")
        assert late < 1.05 * early + 10, role

    config = CONFIG | where | {"output-dir": str(tmp_path / "whole"), "state-dir": ""}
    serve(SerializingGrid(client_app.app, CLIENTS, run_config=config), config)
    whole = read_metrics(tmp_path / "whole" / "soak")
    ours, without = rounds[-1].test_accuracy, whole[-1].test_accuracy
    assert ours is not None
    assert without is not None
    print(f"accuracy {ours:.1%}, without failures {without:.1%}")
    assert without > 0.8
    assert abs(ours - without) < 0.05
