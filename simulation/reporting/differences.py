"""Tables of differences between methods or settings, paired by seed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from simulation.experiments.result_log import Result
from simulation.reporting.grouping import axes, methods, place, results_of, values
from simulation.reporting.tables import headings_of, markdown


def differences(results: Sequence[Result], columns: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Return the differences of pairs of methods in Markdown, in percentage points.

    A row is a pair, the first method minus the second, and a column is a value of the axis
    `columns`. Each other axis has its own column before the pairs. A cell such as
    "+8.0 ± 3.1 (3), ahead" is the mean over the seeds that both completed, half of its 95 %
    interval, their number, and the word that the interval allows; see `intervals.Interval`. If runs
    diverged, their number is in place of the word. Pairs without results are left out.
    """
    shown = results_of(results)
    others = [axis for axis in axes(shown) if axis != columns]
    labels = values(shown, columns)
    known = set(methods(shown))
    rows = []
    for place_of_row in itertools.product(*(values(shown, axis) for axis in others)):
        setting = dict(zip(others, place_of_row, strict=True))
        for one, other in pairs:
            if not {one, other} <= known:
                continue
            found = [
                place(shown, {**setting, columns: label}, one).minus(
                    place(shown, {**setting, columns: label}, other)
                )
                for label in labels
            ]
            rows.append([*place_of_row, f"{one} - {other}", *map(str, found)])
    return markdown([*others, "difference", *headings_of(columns, labels)], rows, len(labels))


def differences_along(
    results: Sequence[Result], axis: str, pairs: Sequence[tuple[str, str]]
) -> str:
    """Return the differences of pairs of values of an axis in Markdown, in percentage points.

    A row is a pair, the first value minus the second, and a column is a method, in each combination
    of values of the other axes. Cells are those of :func:`differences`.
    """
    shown = results_of(results)
    others = [other for other in axes(shown) if other != axis]
    columns = list(itertools.product(*(values(shown, other) for other in others), methods(shown)))
    rows = []
    for one, other in pairs:
        found = []
        for *labels, method in columns:
            setting = dict(zip(others, labels, strict=True))
            cells = [place(shown, {**setting, axis: value}, method) for value in (one, other)]
            found.append(str(cells[0].minus(cells[1])))
        rows.append([f"{one} - {other}", *found])
    return markdown([axis, *(", ".join(column) for column in columns)], rows, len(columns))
