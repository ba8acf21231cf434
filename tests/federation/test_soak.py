"""A long run of many clients, a fifth of which fail in each round: it learns in constant memory."""

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
from fixbn_flwr.app.local_superlink import local_superlink
from fixbn_flwr.app.runs.reader import read_metrics
from fixbn_flwr.testing import SerializingGrid
from simulation.benchmarks.process_monitor import descendants
from tests.support.pages import ROOT as APP
from tests.support.whole_app import serve

pytestmark = pytest.mark.slow

CLIENTS, ROUNDS, PER_ROUND = 200, 300, 5
CONFIG: dict[str, Any] = {
    "partition": "iid",  # seven images each
    "batch-size": 4,
    "num-server-rounds": ROUNDS,
    "fraction-train": PER_ROUND / CLIENTS,
    "evaluate-every": 50,
    "device": "cpu",
}

FAILING = '''"""The app's clients; in every round, a random fifth of them fails."""

import random

from fixbn_flwr.app.client_app import client_app_of, client_of


def failing_mod(message, context, call_next):
    config = message.content.config_records.get("config", {})
    where = (config.get("server-round"), context.node_config["partition-id"])
    if message.metadata.message_type == "train" and random.Random(str(where)).random() < 0.2:
        raise RuntimeError("this client fails now and then")
    return call_next(message, context)


app = client_app_of(client_of, [failing_mod])
'''


def failing_app(folder: Path) -> Path:
    """Create a Flower app with FAILING as its clients."""
    folder.mkdir()
    (folder / "failing.py").write_text(FAILING)
    own = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config = "\n".join(f"{key} = {json.dumps(value)}" for key, value in own.items())
    (folder / "pyproject.toml").write_text(
        "[project]\nname = 'soak'\nversion = '1.0.0'\n"
        "[tool.flwr.app]\npublisher = 'fixbn'\nfab-include = ['failing.py']\n"
        "[tool.flwr.app.components]\nserverapp = 'fixbn_flwr.app.server_app:app'\n"
        f"clientapp = 'failing:app'\n[tool.flwr.app.config]\n{config}\n"
    )
    return folder


class Memory(threading.Thread):
    """Records the memory of the server and the workers in MB, with the number of rounds done."""

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
            own = descendants()
            for role, samples in self.seen.items():
                held = [resident(process.pid) for process in own if process.role == role]
                if held:
                    samples.append((done, max(held)))

    def between(self, role: str, first: int, last: int) -> float:
        """Return the median memory of a role's largest process between two rounds."""
        return statistics.median(mb for done, mb in self.seen[role] if first <= done <= last)


def resident(process: int) -> float:
    """Return a process's own memory in MB, without the shared pages of Ray's store."""
    with suppress(OSError, ValueError, IndexError):
        pages = (Path("/proc") / str(process) / "statm").read_text().split()
        return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


def test_memory_stays_constant_over_200_clients_and_300_rounds(tmp_path: Path) -> None:
    runs, state = tmp_path / "runs", tmp_path / "state"
    output = {"output-dir": str(runs), "run-name": "soak", "state-dir": str(state)}
    federation = {
        "num-supernodes": CLIENTS,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": 2,
    }
    memory, log = Memory(runs / "soak" / "metrics.jsonl"), list[str]()
    memory.start()
    with local_superlink() as link:
        failure = link.run(failing_app(tmp_path / "app"), CONFIG | output, federation, log.append)
    memory.over.set()
    assert failure is None, "\n".join(log[-40:])
    rounds = read_metrics(runs / "soak")
    assert len(rounds) == ROUNDS
    assert all(line.clients + line.dropped == PER_ROUND for line in rounds)
    failed = sum(line.dropped for line in rounds) / (PER_ROUND * ROUNDS)
    assert 0.17 < failed < 0.23
    assert "this client fails now and then" in "\n".join(log)

    for role in ("server", "worker"):
        early, late = memory.between(role, 30, 90), memory.between(role, 240, 300)
        print(f"{role}: {early:.0f} MB in rounds 30 to 90, {late:.0f} MB in rounds 240 to 300")
        assert late < 1.05 * early + 10, role

    config = CONFIG | output | {"output-dir": str(tmp_path / "reliable"), "state-dir": ""}
    serve(SerializingGrid(client_app.app, CLIENTS, run_config=config), config)
    reliable = read_metrics(tmp_path / "reliable" / "soak")
    own, without = rounds[-1].test_accuracy, reliable[-1].test_accuracy
    assert own is not None
    assert without is not None
    print(f"accuracy {own:.1%}, without failures {without:.1%}")
    assert without > 0.8
    assert abs(own - without) < 0.05
