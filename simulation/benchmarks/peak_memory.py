"""Peak memory of a small and a large federation; 10 clients train in each round.

The large one runs twice: with momentum buffers in Flower's context, which the server process holds
for every client that has trained, and in files (`state-dir`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from fixbn_flwr.app.local_superlink import local_superlink
from simulation.benchmarks.machine import progress
from simulation.benchmarks.measured_run import CLIENTS, Measurement, our_app, start_table


def measure_memory(
    data: Path, *, rounds: int, clients: int, workers: int
) -> dict[str, Measurement]:
    """Run our app with few and with many clients; return the runs by name.

    Args:
        data: The directory with CIFAR-10.
        rounds: The number of warm rounds.
        clients: The number of clients of the large federation.
        workers: The number of processes.
    """
    runs: dict[str, Measurement] = {}
    for number, in_files in ((CLIENTS, False), (clients, False), (clients, True)):
        name = f"{number} clients, buffers in {'files' if in_files else 'state'}"
        progress(name)
        with tempfile.TemporaryDirectory() as scratch, local_superlink() as link:
            folder = Path(scratch)
            state_dir = str(folder / "state") if in_files else ""
            runs[name] = our_app(
                link, folder / "run", data, rounds, workers,
                steps=1, clients=number, state_dir=state_dir,
            )  # fmt: skip
        progress(start_table({name: [runs[name]]}))
    return runs
