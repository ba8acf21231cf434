"""Seconds a round: a bare PyTorch loop, our app on its engine and under Ray, and others, in turn.

All of them take the same local steps: ResNet-20 on CIFAR-10, 10 clients, batches of 20, float32.
Only warm rounds count: not the first, and none in which the model is evaluated.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulation.benchmarks.bare_loop import BareLoops, Variant, variants
from simulation.benchmarks.machine import progress
from simulation.benchmarks.measured_run import BATCH, CLIENTS, cifar10, our_app, quickstart
from simulation.benchmarks.pfl_loop import is_installed, measure_pfl

ENGINE, RAY, QUICK = "this app, engine", "this app, Ray", "the quickstart's client, Ray"
PFL = "pfl-research, 1 process"


@dataclass
class Speeds:
    """The measured seconds a round.

    Attributes:
        workers: The number of processes; the bare loop with as many is what the others are
            compared with.
        seconds: By number of local steps and name, the median round of each repetition.
    """

    workers: int
    seconds: dict[int, dict[str, list[float]]] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The name of the bare loop with as many processes and the app's memory format."""
        return Variant(self.workers, 1, channels_last=True).name

    def add(self, steps: int, name: str, seconds: float) -> None:
        """Add a repetition's median round, and print it."""
        self.seconds.setdefault(steps, {}).setdefault(name, []).append(seconds)
        progress(f"{steps} steps, {name}: {seconds:.3f} s, load {os.getloadavg()[0]:.1f}")

    def median(self, steps: int, name: str) -> float:
        """Return the median of the repetitions."""
        return statistics.median(self.seconds[steps][name])

    def ratio(self, steps: int, name: str) -> float:
        """Return the seconds as a multiple of the reference's."""
        return self.median(steps, name) / self.median(steps, self.reference)

    def report(self) -> dict[str, Any]:
        """Return all samples, medians and ratios for JSON."""
        return {
            "reference": self.reference,
            "steps": {
                str(steps): {
                    name: {
                        "seconds": [round(value, 4) for value in values],
                        "median": round(self.median(steps, name), 4),
                        "ratio": round(self.ratio(steps, name), 3),
                    }
                    for name, values in named.items()
                }
                for steps, named in self.seconds.items()
            },
        }

    def table(self) -> str:
        """Return medians with their spread, and ratios to the reference, as text."""
        head = "".join(f"{f'{steps} steps':>28}" for steps in self.seconds)
        lines = [f"{'seconds a round':<38}{head}"]
        for name in next(iter(self.seconds.values())):
            cells = [
                f"{self.median(steps, name):.2f} ({min(named[name]):.2f}-{max(named[name]):.2f})"
                f" {self.ratio(steps, name):>5.2f}x"
                for steps, named in self.seconds.items()
            ]
            lines.append(f"{name:<38}" + "".join(f"{cell:>28}" for cell in cells))
        return "\n".join(lines)


def measure_speeds(
    data: Path, *, rounds: int, repetitions: int, steps: list[int], workers: int
) -> Speeds:
    """Measure everything in turn, as often as asked.

    Args:
        data: The directory with CIFAR-10.
        rounds: The number of warm rounds per repetition.
        repetitions: How often each is measured.
        steps: The numbers of local steps of a client in a round.
        workers: The number of processes.
    """
    speeds = Speeds(workers)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loops = stack.enter_context(BareLoops(workers, data))
        for repetition in range(1, repetitions + 1):
            progress(f"repetition {repetition} of {repetitions}")
            for number in steps:
                folder = scratch / f"{repetition}-{number}"
                folder.mkdir()
                for name, seconds in _measure(loops, folder, data, rounds, workers, number):
                    speeds.add(number, name, seconds)
    return speeds


def _measure(
    loops: BareLoops, folder: Path, data: Path, rounds: int, workers: int, steps: int
) -> Iterator[tuple[str, float]]:
    """Yield the seconds a round of each."""
    in_a_round = CLIENTS * steps
    for variant in variants(workers):
        per_second, _ = loops.run(variant, in_a_round * rounds, BATCH)
        yield variant.name, in_a_round * BATCH / per_second
    config, job = cifar10(data, steps=steps), {"rounds": rounds, "clients": CLIENTS}
    yield ENGINE, our_app("local", folder / "engine", config, workers=workers, **job).seconds
    yield RAY, our_app("ray", folder / "ray", config, workers=workers, **job).seconds
    yield QUICK, quickstart(folder / "quick", data, rounds, workers, steps=steps).seconds
    if is_installed():
        seconds = measure_pfl(data, rounds, workers, clients=CLIENTS, steps=steps, batch_size=BATCH)
        yield PFL, statistics.median(seconds)
