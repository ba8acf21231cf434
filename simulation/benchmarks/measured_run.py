"""One measured `flwr run`, of our app or of the quickstart."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.local_superlink import SuperLink
from fixbn_flwr.errors import FixBNError
from simulation import REPOSITORY
from simulation.benchmarks.process_monitor import Watch

QUICKSTART = REPOSITORY / "simulation" / "benchmarks" / "quickstart"
CLIENTS, STEPS, BATCH = 10, 20, 20  # per round; per client and round; images per step

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


def our_app(
    link: SuperLink,
    folder: Path,
    data: Path,
    rounds: int,
    workers: int,
    *,
    steps: int,
    clients: int = CLIENTS,
    state_dir: str = "",
) -> Measurement:
    """Run our app. The last round, which is always evaluated, follows the warm rounds."""
    run_config: dict[str, Value] = {
        "task": "cifar10",
        "data-dir": str(data),
        "partition": "iid",
        "fraction-train": CLIENTS / clients,
        "local-steps": steps,
        "batch-size": BATCH,
        "learning-rate": 0.05,
        "num-server-rounds": rounds + 2,
        "freeze-after": 1.0,  # batch statistics in every round, as in the bare loop
        "evaluate-every": rounds + 3,
        "device": "cpu",
        "state-dir": state_dir,
        "output-dir": str(folder.parent),
        "run-name": folder.name,
    }
    return _run(link, REPOSITORY, run_config, clients, workers, folder / "metrics.jsonl", rounds)


def quickstart(
    link: SuperLink, folder: Path, data: Path, rounds: int, workers: int, *, steps: int
) -> Measurement:
    """Run the quickstart, which never evaluates."""
    file = folder.with_suffix(".jsonl")
    run_config: dict[str, Value] = {
        "data-dir": str(data),
        "rounds-file": str(file),
        "local-steps": steps,
        "batch-size": BATCH,
        "num-server-rounds": rounds + 1,
    }
    return _run(link, QUICKSTART, run_config, CLIENTS, workers, file, rounds)


def _run(
    link: SuperLink,
    app: Path,
    run_config: Mapping[str, Value],
    clients: int,
    workers: int,
    rounds_file: Path,
    rounds: int,
) -> Measurement:
    federation: dict[str, Value] = {
        "num-supernodes": clients,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": workers,
    }
    log: list[str] = []
    with Watch(rounds_file) as watch:
        failure = link.run(app, run_config, federation, log.append)
    if failure is not None or watch.first_round is None:
        raise FixBNError("\n".join([*log, f"the run did not complete ({failure})."]))
    seconds = [json.loads(line)["seconds"] for line in rounds_file.read_text().splitlines()]
    processor = watch.processor[rounds] - watch.processor[0]
    return Measurement(seconds[1 : rounds + 1], processor, watch.first_round, watch.peaks)


def start_table(runs: Mapping[str, list[Measurement]]) -> str:
    """Return the seconds from submission to round 2, and peak memory, as text."""
    roles = ("server", "worker", "ray")
    lines = [f"{'':<38}{'to round 2':>14}" + "".join(f"{role + ' MB':>12}" for role in roles)]
    for name, measured in runs.items():
        start = statistics.median(run.first_round for run in measured)
        peaks = [max(run.peak_megabytes.get(role, 0.0) for run in measured) for role in roles]
        lines.append(f"{name:<38}{start:>12.1f} s" + "".join(f"{peak:>12.0f}" for peak in peaks))
    return "\n".join(lines)
