"""Images per second: a bare PyTorch loop, our app, and a quickstart, in turn.

All of them take the same local steps: ResNet-20 on CIFAR-10, 10 clients x 20 steps per round in
batches of 20, float32. Only warm rounds of the two apps count: not the first, and none in which the
model is evaluated. Images per second of processor time depend less on the load of the machine.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fixbn_flwr.app.local_superlink import local_superlink
from simulation.benchmarks.bare_loop import BareLoops, variants
from simulation.benchmarks.machine import progress
from simulation.benchmarks.measured_run import (
    BATCH,
    CLIENTS,
    Measurement,
    our_app,
    quickstart,
    start_table,
)

OURS, QUICK = "our app (b)", "quickstart (c)"
APPS = {OURS: our_app, QUICK: quickstart}
RATIOS = (("b/a", "our app / fastest bare loop", 0.87), ("b/c", "our app / quickstart", 1.5))


@dataclass
class Speeds:
    """The measured speeds, by name of a bare loop or an app.

    Attributes:
        per_second: Images per second; of an app, in each warm round.
        per_processor_second: Images per second of processor time, in each repetition.
        runs: The runs of the two apps.
    """

    per_second: dict[str, list[float]] = field(default_factory=dict)
    per_processor_second: dict[str, list[float]] = field(default_factory=dict)
    runs: dict[str, list[Measurement]] = field(default_factory=lambda: {name: [] for name in APPS})

    def add(self, name: str, per_second: list[float], per_processor_second: float) -> None:
        """Add a measurement and print it."""
        self.per_second.setdefault(name, []).extend(per_second)
        self.per_processor_second.setdefault(name, []).append(per_processor_second)
        values = ", ".join(f"{value:.0f}" for value in per_second)
        progress(f"{name}: {values} images/s, load {os.getloadavg()[0]:.1f}")

    def report(self) -> dict[str, Any]:
        """Return medians, ratios, samples and runs for JSON."""
        medians, by_processor = _medians(self.per_second), _medians(self.per_processor_second)
        return {
            "images_per_second": medians,
            "images_per_processor_second": by_processor,
            "ratios": ratios(medians),
            "ratios_by_processor_time": ratios(by_processor),
            "samples": {
                "images_per_second": self.per_second,
                "images_per_processor_second": self.per_processor_second,
            },
            "runs": {name: [asdict(run) for run in runs] for name, runs in self.runs.items()},
        }

    def table(self) -> str:
        """Return medians, ratios, start-up time and memory as text."""
        medians, by_processor = _medians(self.per_second), _medians(self.per_processor_second)
        lines = [f"{'images':<38}{'per second':>14}{'per second of processor time':>30}"]
        lines += [
            f"{name:<38}{medians[name]:>14.0f}{by_processor[name]:>30.0f}" for name in medians
        ]
        for ratio, label, goal in RATIOS:
            values = (ratios(medians)[ratio], ratios(by_processor)[ratio])
            lines.append(f"{f'{label} (goal: {goal})':<38}{values[0]:>14.2f}{values[1]:>30.2f}")
        return "\n".join([*lines, "", start_table(self.runs)])


def measure_speeds(
    data: Path, *, rounds: int, repetitions: int, local_steps: int, workers: int
) -> Speeds:
    """Measure the bare loops and the two apps in turn.

    Args:
        data: The directory with CIFAR-10.
        rounds: The number of warm rounds per repetition.
        repetitions: How often each of them is measured.
        local_steps: Of a client in a round.
        workers: The number of processes.
    """
    speeds = Speeds()
    images = CLIENTS * local_steps * BATCH
    with tempfile.TemporaryDirectory() as scratch, BareLoops(workers, data) as loops:
        for repetition in range(1, repetitions + 1):
            progress(f"repetition {repetition} of {repetitions}")
            for variant in variants(workers):
                per_second, efficiency = loops.run(variant, CLIENTS * local_steps, BATCH)
                speeds.add(variant.name, [per_second], efficiency)
            for name, measure in APPS.items():
                folder = Path(scratch) / f"{name[:3]}-{repetition}"
                with local_superlink() as link:
                    run = measure(link, folder, data, rounds, workers, steps=local_steps)
                speeds.runs[name].append(run)
                of_rounds = [images / seconds for seconds in run.warm_rounds]
                speeds.add(name, of_rounds, images * rounds / run.processor)
    return speeds


def ratios(medians: Mapping[str, float]) -> dict[str, float]:
    """Return the speed of our app relative to the fastest bare loop and to the quickstart."""
    bare = max(speed for name, speed in medians.items() if name not in APPS)
    return {"b/a": medians[OURS] / bare, "b/c": medians[OURS] / medians[QUICK]}


def _medians(samples: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in samples.items()}
