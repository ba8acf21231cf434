"""Draw the grids of an experiment as PNG files. `View` describes the figure of a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fixbn_flwr.errors import ConfigError
from simulation.experiments.result_log import Result
from simulation.reporting.figure_layout import (
    WIDTH,
    add_legend,
    columns_of,
    label_axes,
    new_figure,
    seeds_note,
)
from simulation.reporting.grouping import axes, methods, place, results_of, values
from simulation.reporting.heat_map import draw_map
from simulation.reporting.panels import (
    bar_of,
    draw_lines,
    draw_points,
    scale_of,
    set_scale,
    styles_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLOT = 0.12  # width of a method's marker, in inches
CELL_WIDTH, CELL_HEIGHT = 0.62, 0.5  # size of a cell of a map with its number, in inches
KINDS = ("points", "lines", "map")


@dataclass(frozen=True)
class View:
    """The figure of a grid; a table of the experiment's TOML file.

    Attributes:
        title: The title, a sentence.
        kind: "points" for categories, "lines" for numbers on the x axis, "map" for differences
            from a baseline over two axes.
        x: The axis of the grid on the x axis; the columns of a map.
        x_label: The label of the x axis, with its unit.
        panels: The axis of the grid with a panel per value. Default: one panel.
        rows: The axis of the grid on the y axis of a map.
        pairs: The pairs of methods to compare, the first minus the second: the panels of a map,
            and the rows of the table of differences. Default: no comparison.
        y_label: The label of the y axis, with its unit. Default: "test accuracy (%)".

    Raises:
        ConfigError: If the kind is unknown, a map lacks `rows` or `pairs` or has `panels`, or
            another kind has `rows`.
    """

    title: str
    kind: Literal["points", "lines", "map"]
    x: str
    x_label: str
    panels: str | None = None
    rows: str | None = None
    pairs: Sequence[tuple[str, str]] = ()
    y_label: str = "test accuracy (%)"

    def __post_init__(self) -> None:
        view = f'view "{self.title}"'
        if self.kind not in KINDS:
            raise ConfigError(
                f"{view}: {self.kind!r} is not a kind: choose one of {', '.join(KINDS)}."
            )
        if self.kind == "map" and (not self.rows or not self.pairs or self.panels):
            raise ConfigError(
                f"{view}: a map has rows, and one panel for each pair of methods: set rows and"
                " pairs, and remove panels."
            )
        if self.kind != "map" and self.rows:
            raise ConfigError(f"{view}: only a map has rows: remove them, or set kind to map.")


def draw(results: Sequence[Result], view: View, path: Path) -> None:
    """Save the figure of a grid's results as PNG; see `figure_of`."""
    figure_of(results, view).savefig(path, format="png")


def figure_of(results: Sequence[Result], view: View) -> Figure:
    """Return the figure of a grid's results: mean and 95 % interval by method.

    Raises:
        ConfigError: If there is no result, the axes of the view are not those of the grid, or a
            map has no pair of methods with results.
    """
    shown = results_of(results)
    check_axes(shown, [axis for axis in (view.x, view.panels, view.rows) if axis is not None])
    return _map(shown, view) if view.kind == "map" else _marks(shown, view)


def check_axes(shown: Sequence[Result], wanted: Sequence[str]) -> None:
    """Check that a figure shows exactly the axes of the grid, so that it mixes no settings.

    Raises:
        ConfigError: If it does not.
    """
    found = axes(shown)
    if set(found) != set(wanted):
        raise ConfigError(
            f"a figure with the axes {', '.join(wanted) or '(none)'} cannot show the grid"
            f' "{shown[0].grid}", whose axes are {", ".join(found) or "(none)"}: use each'
            " axis once, as x, panels or rows."
        )


def panel_settings(
    shown: Sequence[Result], axis: str | None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the title and the setting of each panel; one panel without them if `axis` is None."""
    if axis is None:
        yield "", {}
    else:
        for label in values(shown, axis):
            yield f"{axis}: {label}", {axis: label}


def _marks(shown: Sequence[Result], view: View) -> Figure:
    """Return a figure of points or lines."""
    names, labels = methods(shown), values(shown, view.x)
    panels = {
        title: {
            name: [place(shown, {**setting, view.x: label}, name) for label in labels]
            for name in names
        }
        for title, setting in panel_settings(shown, view.panels)
    }
    cells = [cell for rows in panels.values() for row in rows.values() for cell in row]
    scale = scale_of(
        [value for cell in cells for value in (*cell.accuracies, *bar_of(cell))],
        max(cell.diverged for cell in cells),
    )
    points = view.kind == "points"
    room = len(names) * len(labels) * SLOT if points else WIDTH / 3
    figure, grid = new_figure(len(panels), columns=int(WIDTH / room), title=view.title)
    letters = 72 / columns_of(grid) / len(labels)
    for ax, (title, rows) in zip(grid, panels.items(), strict=True):
        (draw_points if points else draw_lines)(ax, rows, labels, scale, letters)
        set_scale(ax, scale)
        ax.set_title(title, fontsize="medium")
    label_axes(grid, view.x_label, view.y_label)
    note = seeds_note(cells)
    if note != "1 seed":
        note = f"mean of {note}, with its 95 % interval and a dot for each"
    add_legend(figure, styles_of(names), line=not points, note=note)
    return figure


def _map(shown: Sequence[Result], view: View) -> Figure:
    """Return a figure with a panel for each pair of methods: their difference in each cell."""
    names = methods(shown)
    assert view.rows is not None  # checked by View
    rows, columns = values(shown, view.rows), values(shown, view.x)
    cells = {
        name: [
            [place(shown, {view.rows: row, view.x: column}, name) for column in columns]
            for row in rows
        ]
        for name in names
    }
    pairs = [(one, other) for one, other in view.pairs if {one, other} <= cells.keys()]
    if not pairs:
        raise ConfigError(
            f'view "{view.title}": no pair of {", ".join(f"{a} and {b}" for a, b in view.pairs)}'
            f" has results; the methods with a result are {', '.join(names)}: run the missing ones."
        )
    found = [
        cell.minus(below).mean
        for one, other in pairs
        for row, row_below in zip(cells[one], cells[other], strict=True)
        for cell, below in zip(row, row_below, strict=True)
    ]
    limit = max((abs(number) for number in found if math.isfinite(number)), default=1.0)
    figure, grid = new_figure(
        len(pairs),
        columns=int(WIDTH / (CELL_WIDTH * len(columns) + 0.6)),
        title=view.title,
        panel_height=CELL_HEIGHT * len(rows) + 1.0,
    )
    for ax, (one, other) in zip(grid, pairs, strict=True):
        image = draw_map(ax, cells[one], cells[other], max(limit, 1.0))
        ax.set_title(f"{one} minus {other}", fontsize="medium")
        ax.set_xticks(range(len(columns)), columns)
        ax.set_yticks(range(len(rows)), rows)
    label_axes(grid, view.x_label, view.rows)
    bar = figure.colorbar(image, ax=grid, location="bottom", aspect=40, shrink=0.7)
    measured = view.y_label.removesuffix(" (%)")
    flat = [cell for table in cells.values() for row in table for cell in row]
    bar.set_label(
        f"difference in {measured} (percentage points), mean over {seeds_note(flat)}\n"
        "with its 95 % interval; bold if that excludes 0"
    )
    return figure
