"""The grids of an experiment as figures: PNG files for the README, drawn without a display.

`View` says how a grid is shown. Lines by round and by layer are in curves.py.
"""

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
from simulation.reporting.panels import (
    difference,
    draw_lines,
    draw_map,
    draw_points,
    scale_of,
    set_scale,
    styles_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLOT = 0.12  # inches that a method's marker needs beside the others
CELL_WIDTH, CELL_HEIGHT = 0.62, 0.42  # inches that the number in a cell of a map needs
KINDS = ("points", "lines", "map")


@dataclass(frozen=True)
class View:
    """How one grid of an experiment is shown; a table of the experiment's TOML file.

    Attributes:
        title: what the figure shows, a sentence.
        kind: "points" for places side by side, "lines" for a number along x, "map" for differences
            from a baseline over two axes.
        x: the axis along x; of a map the columns.
        x_label: what stands under it, with its unit.
        panels: the axis whose values get a panel each; None: one panel.
        rows: of a map, the axis along y, named beside it.
        baseline: of a map, the method whose accuracy is subtracted from every other's.
        y_label: what is measured, with its unit.

    Raises:
        ConfigError: there is no such kind, a map lacks `rows` or `baseline` or has `panels`, or
            another kind has what only a map has.
    """

    title: str
    kind: Literal["points", "lines", "map"]
    x: str
    x_label: str
    panels: str | None = None
    rows: str | None = None
    baseline: str | None = None
    y_label: str = "test accuracy (%)"

    def __post_init__(self) -> None:
        view = f'view "{self.title}"'
        if self.kind not in KINDS:
            raise ConfigError(
                f"{view}: kind is {self.kind!r}, which cannot be drawn: take {', '.join(KINDS)}."
            )
        if self.kind == "map" and (None in (self.rows, self.baseline) or self.panels is not None):
            raise ConfigError(
                f"{view}: a map has a panel a method, an axis along y and a method to subtract:"
                " give rows and baseline, leave out panels."
            )
        if self.kind != "map" and (self.rows, self.baseline) != (None, None):
            raise ConfigError(
                f"{view}: only a map has rows and a baseline: leave them out, or make it a map."
            )


def draw(results: Sequence[Result], view: View, path: Path) -> None:
    """Draw a grid's results into a PNG file; for the errors see `figure_of`."""
    figure_of(results, view).savefig(path, format="png")


def figure_of(results: Sequence[Result], view: View) -> Figure:
    """The figure of a grid's results: of each method the mean over the seeds, and how far they lie.

    Raises:
        ConfigError: there is no result, an axis of the view is not one of the grid or the other way
            round, or a map's baseline is not one of several methods.
    """
    shown = results_of(results)
    check_axes(shown, [axis for axis in (view.x, view.panels, view.rows) if axis is not None])
    return _map(shown, view) if view.kind == "map" else _marks(shown, view)


def check_axes(shown: Sequence[Result], wanted: Sequence[str]) -> None:
    """Make sure that a figure shows every axis of the grid, so that it mixes up no settings.

    Raises:
        ConfigError: it does not, or shows an axis that is not there.
    """
    found = axes(shown)
    if set(found) != set(wanted):
        raise ConfigError(
            f"a figure with the axes {', '.join(wanted) or '(none)'} cannot show the grid"
            f' "{shown[0].grid}", whose axes are {", ".join(found) or "(none)"}: name each of'
            " them once, as x, panels or rows."
        )


def panel_settings(
    shown: Sequence[Result], axis: str | None
) -> Iterator[tuple[str, dict[str, str]]]:
    """The title and the setting of each panel; one panel without either when `axis` is None."""
    if axis is None:
        yield "", {}
    else:
        for label in values(shown, axis):
            yield f"{axis}: {label}", {axis: label}


def _marks(shown: Sequence[Result], view: View) -> Figure:
    """Points or lines."""
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
        [accuracy for cell in cells for accuracy in cell.accuracies],
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
        note = f"mean of {note}, with a bar from the lowest to the highest and a dot for each"
    add_legend(figure, styles_of(names), line=not points, note=note)
    return figure


def _map(shown: Sequence[Result], view: View) -> Figure:
    """A panel a method: what it has over the baseline at each place of two axes."""
    names = methods(shown)
    assert view.rows is not None  # View has made sure
    assert view.baseline is not None
    if view.baseline not in names or len(names) == 1:
        raise ConfigError(
            f'view "{view.title}": the baseline is {view.baseline!r}, to be subtracted from other'
            f" methods, but those with a result are {', '.join(names)}: name one of them, or run"
            " the others."
        )
    rows, columns = values(shown, view.rows), values(shown, view.x)
    cells = {
        name: [
            [place(shown, {view.rows: row, view.x: column}, name) for column in columns]
            for row in rows
        ]
        for name in names
    }
    baseline = cells.pop(view.baseline)
    flat = [cell for table in cells.values() for row in table for cell in row]
    found = [
        difference(cell, below)
        for table in cells.values()
        for row, row_below in zip(table, baseline, strict=True)
        for cell, below in zip(row, row_below, strict=True)
    ]
    limit = max((abs(number) for number in found if math.isfinite(number)), default=1.0)
    figure, grid = new_figure(
        len(cells),
        columns=int(WIDTH / (CELL_WIDTH * len(columns) + 0.6)),
        title=view.title,
        panel_height=CELL_HEIGHT * len(rows) + 1.0,
    )
    for ax, (name, table) in zip(grid, cells.items(), strict=True):
        image = draw_map(ax, table, baseline, max(limit, 1.0))
        ax.set_title(f"{name} minus {view.baseline}", fontsize="medium")
        ax.set_xticks(range(len(columns)), columns)
        ax.set_yticks(range(len(rows)), rows)
    label_axes(grid, view.x_label, view.rows)
    bar = figure.colorbar(image, ax=grid, location="bottom", aspect=40, shrink=0.7)
    measured = view.y_label.removesuffix(" (%)")
    bar.set_label(
        f"difference in {measured} (percentage points), of the mean over {seeds_note(flat)}"
    )
    return figure
