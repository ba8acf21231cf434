"""One measured run of our app, on its engine or under Ray, or of the quickstart under Ray."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.local_superlink import local_superlink
from fixbn_flwr.errors import FixBNError
from simulation import REPOSITORY
from simulation.benchmarks.process_monitor import Watch

QUICKSTART = REPOSITORY / "simulation" / "benchmarks" / "quickstart"
CLIENTS, BATCH = 10, 20  # clients that train in a round; images per step

# By default Ray lowers the priority of its workers; the bare loop has normal priority.
os.environ.setdefault("RAY_worker_niceness", "0")


@dataclass
class Measurement:
    """One run of an app.

    Attributes:
        warm_rounds: The seconds of each warm round.
        processor: Seconds of processor time of all processes in the warm rounds.
        first_round: Seconds from submission to the end of round 1.
        peak_megabytes: Peak memory by role; see ``simulation.benchmarks.process_monitor``.
    """

    warm_rounds: list[float]
    processor: float
    first_round: float
    peak_megabytes: dict[str, float]

    @property
    def seconds(self) -> float:
        """The median of the warm rounds."""
        return statistics.median(self.warm_rounds)


def our_app(
    engine: Literal["local", "ray"],
    folder: Path,
    run_config: Mapping[str, Value],
    *,
    rounds: int,
    clients: int,
    workers: int | None = None,
) -> Measurement:
    """Run our app. The last round, which is always evaluated, follows the warm rounds.

    Args:
        engine: What runs the clients.
        folder: The run folder.
        run_config: What differs from the defaults, and from batch statistics in every round, as a
            bare loop has.
        rounds: The number of warm rounds.
        clients: The number of clients.
        workers: The number of clients that train at a time. Default: the app's.
    """
    config: dict[str, Value] = {
        "learning-rate": 0.05,
        "num-server-rounds": rounds + 2,
        "freeze-after": 1.0,
        "evaluate-every": rounds + 3,
        "output-dir": str(folder.parent),
        "run-name": folder.name,
        **run_config,
    }
    options = ["--engine", engine, "--clients", str(clients)]
    options += [] if workers is None else ["--workers", str(workers)]
    words = [f"{key}={json.dumps(value)}" for key, value in config.items()]
    with _watched(folder / "metrics.jsonl", rounds) as measured:
        result = subprocess.run(
            [Path(sys.executable).parent / "fixbn", "run", *options, *words],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            check=False,
        )  # fmt: skip
        if result.returncode:
            raise FixBNError(result.stdout)
    return measured[0]


def cifar10(
    data: Path, *, steps: int, clients: int = CLIENTS, batch_size: int = BATCH
) -> dict[str, Value]:
    """Return the run config of CIFAR-10 on a CPU; 10 of the clients train in each round."""
    return {
        "task": "cifar10",
        "data-dir": str(data),
        "partition": "iid",
        "fraction-train": CLIENTS / clients,
        "local-steps": steps,
        "batch-size": batch_size,
        "device": "cpu",
    }


def quickstart(folder: Path, data: Path, rounds: int, workers: int, *, steps: int) -> Measurement:
    """Run the quickstart under Ray; it never evaluates. See ``our_app``."""
    file = folder.with_suffix(".jsonl")
    run_config: dict[str, Value] = {
        "data-dir": str(data),
        "rounds-file": str(file),
        "local-steps": steps,
        "batch-size": BATCH,
        "num-server-rounds": rounds + 1,
    }
    federation: Mapping[str, Value] = {
        "num-supernodes": CLIENTS,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": workers,
    }
    log: list[str] = []
    with _watched(file, rounds) as measured, local_superlink() as link:
        failure = link.run(QUICKSTART, run_config, federation, log.append)
        if failure is not None:
            raise FixBNError("\n".join([*log, f"the run did not complete ({failure})."]))
    return measured[0]


@contextmanager
def _watched(rounds_file: Path, rounds: int) -> Iterator[list[Measurement]]:
    """Watch a run in the block, and put its measurement into the list."""
    measured: list[Measurement] = []
    with Watch(rounds_file) as watch:
        yield measured
    assert watch.first_round is not None  # the run has completed
    seconds = [json.loads(line)["seconds"] for line in rounds_file.read_text().splitlines()]
    processor = watch.processor[rounds] - watch.processor[0]
    measured.append(Measurement(seconds[1 : rounds + 1], processor, watch.first_round, watch.peaks))
