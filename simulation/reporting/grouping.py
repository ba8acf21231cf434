"""Group results by their cell in an experiment's grid, for tables and figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fixbn_flwr.errors import ConfigError
from simulation.experiments.result_log import Result
from simulation.reporting.intervals import Interval, interval, paired


@dataclass(frozen=True)
class Cell:
    """The runs of a method in one cell of a grid. They differ only in their seed.

    Attributes:
        by_seed: The accuracy of each run that completed, in %, by its seed.
        diverged: The number of runs that failed or ended with a loss that is not finite.
    """

    by_seed: Mapping[int, float]
    diverged: int

    @property
    def accuracies(self) -> tuple[float, ...]:
        """The accuracies of the runs that completed, in %."""
        return tuple(self.by_seed.values())

    @property
    def runs(self) -> int:
        """The number of runs, with those that diverged."""
        return len(self.accuracies) + self.diverged

    @property
    def mean(self) -> float:
        """The mean accuracy in %; NaN if no run completed."""
        return self.interval.mean

    @property
    def interval(self) -> Interval:
        """The mean accuracy in %, with its 95 % interval."""
        return interval(self.accuracies)

    def minus(self, other: Cell) -> Interval:
        """Return the difference from another cell in percentage points, paired by seed."""
        found = paired(self.by_seed, other.by_seed)
        return dataclasses.replace(found, diverged=self.diverged + other.diverged)

    def __str__(self) -> str:
        """Return the mean, its 95 % interval and the number of seeds: "57.2 ± 1.3 (3)"."""
        parts = []
        if len(self.accuracies) > 1:
            half = self.interval.half
            parts.append(f"{self.mean:.1f} ± {half:.1f} ({len(self.accuracies)})")
        elif self.accuracies:
            parts.append(f"{self.mean:.1f} (1)")
        if self.diverged:
            parts.append(f"{self.diverged} of {self.runs} diverged")
        return ", ".join(parts) or "-"


def results_of(lines: Iterable[Result]) -> list[Result]:
    """Return the results of a grid, without searches, each with a value on every axis.

    A run without a value on an axis does not depend on it, such as centralised training on the
    partition of the data. It is repeated for each value of that axis.

    Raises:
        ConfigError: If there is no result, or the results are of several grids.
    """
    results = [line for line in lines if line.kind == "result"]
    if not results:
        raise ConfigError(
            "there is no result to show: no run has completed yet; start some with"
            " `python -m simulation.experiments run`"
        )
    grids = distinct(result.grid for result in results)
    if len(grids) > 1:
        raise ConfigError(
            f"results of the grids {', '.join(grids)} cannot share a table or a figure, since their"
            " axes differ: show one grid at a time"
        )
    for axis in axes(results):
        labels = values(results, axis)
        results = [
            dataclasses.replace(result, setting={**result.setting, axis: label})
            for result in results
            for label in ([result.setting[axis]] if axis in result.setting else labels)
        ]
    return results


def cell_of(runs: Sequence[Result]) -> Cell:
    """Return the cell of runs that differ only in their seed."""
    ended = [run for run in runs if not run.diverged]
    return Cell(
        {run.seed: 100 * run.accuracy for run in ended if run.accuracy is not None},
        len(runs) - len(ended),
    )


def place(results: Iterable[Result], setting: Mapping[str, str], method: str) -> Cell:
    """Return the cell of a method at one value of each axis."""
    return cell_of(
        [
            result
            for result in results
            if result.method == method and setting.items() <= result.setting.items()
        ]
    )


def methods(results: Iterable[Result]) -> list[str]:
    """Return the methods in order of first appearance."""
    return distinct(result.method for result in results)


def axes(results: Iterable[Result]) -> list[str]:
    """Return the axes in order of first appearance."""
    return distinct(axis for result in results for axis in result.setting)


def values(results: Iterable[Result], axis: str) -> list[str]:
    """Return the values on an axis, in the order of :func:`ordered`."""
    return ordered(result.setting[axis] for result in results if axis in result.setting)


def ordered(labels: Iterable[str]) -> list[str]:
    """Return distinct labels, sorted if all are numbers, else in order of first appearance."""
    found = distinct(labels)
    numbers = as_numbers(found)
    if numbers is None:
        return found
    return [label for _, label in sorted(zip(numbers, found, strict=True))]


def as_numbers(labels: Sequence[str]) -> list[float] | None:
    """Return labels such as "20", "0.1" or "10 %" as numbers; None if one is not a number."""
    try:
        numbers = [float(label.removesuffix("%")) for label in labels]
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def distinct(labels: Iterable[str]) -> list[str]:
    """Return distinct labels in order of first appearance."""
    return list(dict.fromkeys(labels))
