"""Runs by their place in an experiment's grid: what its tables and figures are made of."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fixbn_flwr.errors import ConfigError
from simulation.experiments.result_log import Result


@dataclass(frozen=True)
class Cell:
    """The runs of a method in one place of a grid: they differ in their seed only.

    Attributes:
        accuracies: of the runs that went to their end, in %.
        diverged: the number of those that did not, or that ended with a loss that is not a number.
    """

    accuracies: tuple[float, ...]
    diverged: int

    @property
    def runs(self) -> int:
        """The number of all runs."""
        return len(self.accuracies) + self.diverged

    @property
    def mean(self) -> float:
        """The mean accuracy in %; not a number when there is none."""
        return statistics.fmean(self.accuracies) if self.accuracies else math.nan

    def __str__(self) -> str:
        """As in a table: "57.2 ± 1.3 (3)", mean, sample standard deviation, number of seeds."""
        parts = []
        if len(self.accuracies) > 1:
            deviation = statistics.stdev(self.accuracies)
            parts.append(f"{self.mean:.1f} ± {deviation:.1f} ({len(self.accuracies)})")
        elif self.accuracies:
            parts.append(f"{self.mean:.1f} (1)")
        if self.diverged:
            parts.append(f"{self.diverged} of {self.runs} diverged")
        return ", ".join(parts) or "-"


def results_of(lines: Iterable[Result]) -> list[Result]:
    """The results of a grid, without the searches, each with a value on every axis.

    A run without a value on an axis that others have, such as a central one where there are no
    clients to divide the data among, does not depend on it, and stands at every value of it.

    Raises:
        ConfigError: there is no result, or they are of several grids.
    """
    results = [line for line in lines if line.kind == "result"]
    if not results:
        raise ConfigError(
            "there is no result to show: no run has ended yet; make some with"
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
    """The cell of runs that differ in their seed only."""
    ended = [run for run in runs if not run.diverged]
    return Cell(
        tuple(100 * run.accuracy for run in ended if run.accuracy is not None),
        len(runs) - len(ended),
    )


def place(results: Iterable[Result], setting: Mapping[str, str], method: str) -> Cell:
    """The cell of a method at a value of every axis."""
    return cell_of(
        [
            result
            for result in results
            if result.method == method and setting.items() <= result.setting.items()
        ]
    )


def methods(results: Iterable[Result]) -> list[str]:
    """The methods in the order in which they first appear."""
    return distinct(result.method for result in results)


def axes(results: Iterable[Result]) -> list[str]:
    """The axes in the order in which they first appear."""
    return distinct(axis for result in results for axis in result.setting)


def values(results: Iterable[Result], axis: str) -> list[str]:
    """The values on an axis: as numbers if all of them are, else as they first appear."""
    return ordered(result.setting[axis] for result in results if axis in result.setting)


def ordered(labels: Iterable[str]) -> list[str]:
    """Labels without repetition: as numbers if all of them are, else as they first appear."""
    found = distinct(labels)
    numbers = as_numbers(found)
    if numbers is None:
        return found
    return [label for _, label in sorted(zip(numbers, found, strict=True))]


def as_numbers(labels: Sequence[str]) -> list[float] | None:
    """What the labels are as numbers ("20", "0.1", "10 %"); None if one of them is not."""
    try:
        numbers = [float(label.removesuffix("%")) for label in labels]
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def distinct(labels: Iterable[str]) -> list[str]:
    """Labels in the order in which they first appear."""
    return list(dict.fromkeys(labels))
