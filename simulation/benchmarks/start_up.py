"""Seconds from the command line to the end of round 1, beside the imports alone."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from simulation.benchmarks.machine import progress

IMPORTS, ENGINE, RAY = "the imports alone", "fixbn run", "fixbn run --engine ray"

# What a training with Flower and torch cannot do without: the first step of an optimizer imports
# torch._dynamo.
_IMPORTS = "import torch, torch._dynamo, numpy, flwr.app, flwr.clientapp, flwr.serverapp"


def measure_start(repetitions: int) -> dict[str, list[float]]:
    """Return the seconds of each, in turn; the task is digits, with 10 clients."""
    measured: dict[str, list[float]] = {}
    for _ in range(repetitions):
        for name, seconds in (
            (IMPORTS, _imports()),
            (ENGINE, _to_round_1("local")),
            (RAY, _to_round_1("ray")),
        ):
            measured.setdefault(name, []).append(seconds)
            progress(f"{name}: {seconds:.1f} s")
    return measured


def start_table(measured: Mapping[str, list[float]]) -> str:
    """Return the medians with their spread as text."""
    lines = [f"{'seconds to the end of round 1':<38}"]
    for name, seconds in measured.items():
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f}-{max(seconds):.1f})"
        lines.append(f"{name:<38}{spread:>28}")
    return "\n".join(lines)


def _imports() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
    return time.monotonic() - started


def _to_round_1(engine: str) -> float:
    command = [str(Path(sys.executable).parent / "fixbn"), "run", "--engine", engine]
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [*command, "num-server-rounds=2", f"output-dir={folder}"],
            stdout=subprocess.PIPE, text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("round 1/"):
                seconds = time.monotonic() - started
                process.communicate()
                return seconds
    raise RuntimeError("no round has ended:\n" + "".join(lines))
