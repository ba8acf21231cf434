"""Peak memory of small and large federations on the engine; 10 clients train in each round."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from simulation.benchmarks.machine import progress
from simulation.benchmarks.measured_run import Measurement, cifar10, our_app

BATCH = 5  # images per step: 10,000 clients have 5 images each


def measure_memory(
    data: Path, *, rounds: int, clients: Sequence[int], workers: int
) -> dict[int, Measurement]:
    """Run our app with few and with many clients; return the runs by number of clients.

    Each client that has trained keeps a momentum buffer as large as the model.

    Args:
        data: The directory with CIFAR-10.
        rounds: The number of warm rounds.
        clients: The numbers of clients.
        workers: The number of processes.
    """
    runs: dict[int, Measurement] = {}
    for number in clients:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            config = cifar10(data, steps=1, clients=number, batch_size=BATCH)
            runs[number] = our_app(
                "local", folder, config, rounds=rounds, clients=number, workers=workers
            )
        progress(f"{number} clients: {runs[number].peak_megabytes}")
    return runs


def memory_table(runs: Mapping[int, Measurement]) -> str:
    """Return peak memory and the seconds to the end of round 1 as text."""
    lines = [f"{'clients':<10}{'server MB':>12}{'worker MB':>12}{'to round 1':>14}{'a round':>12}"]
    for number, run in runs.items():
        server, worker = (run.peak_megabytes[role] for role in ("server", "worker"))
        seconds = f"{run.first_round:>12.1f} s{run.seconds:>10.2f} s"
        lines.append(f"{number:<10,}{server:>12.0f}{worker:>12.0f}{seconds}")
    return "\n".join(lines)
