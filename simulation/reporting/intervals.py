"""Means with 95 % intervals by Student's t, and the word that an interval allows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval.

    Attributes:
        mean: The mean; NaN without a value.
        half: Half of the interval's width; NaN with fewer than two values.
        number: The number of values.
        diverged: The number of runs that are missing because they diverged.
    """

    mean: float
    half: float
    number: int
    diverged: int = 0

    @property
    def word(self) -> str:
        """What a difference says: "ahead", "behind" or "level"; "one seed" without an interval.

        If runs diverged, their number, because the others alone say too little.
        """
        if self.diverged:
            return f"{self.diverged} diverged"
        if self.number < 2:
            return "one seed" if self.number else ""
        if abs(self.mean) <= self.half:
            return "level"
        return "ahead" if self.mean > 0 else "behind"

    def __str__(self) -> str:
        """Return the difference, its interval, the number and the word: "+8.0 ± 3.1 (3), ahead"."""
        if self.number < 2:
            return f"{self.mean:+.1f}, {self.word}" if self.number else self.word or "-"
        return f"{self.mean:+.1f} ± {self.half:.1f} ({self.number}), {self.word}"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values with its 95 % interval.

    Example:
        >>> interval([1.0, 2.0, 3.0])
        Interval(mean=2.0, half=2.48..., number=3, diverged=0)
    """
    number = len(values)
    mean = statistics.fmean(values) if values else math.nan
    if number < 2:
        return Interval(mean, math.nan, number)
    quantile = float(student.ppf((1 + LEVEL) / 2, number - 1))
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(number), number)


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    """Return the interval of the difference `one` minus `other`, over the seeds that both have.

    With the same seed both have the same clients, batches and, if the network is the same, the
    same initial weights. Pairing removes what these add to both.
    """
    return interval([one[seed] - other[seed] for seed in one if seed in other])
