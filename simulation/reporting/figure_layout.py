"""A figure around its panels: their grid, labels at its edges, and a legend below it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulation.reporting.grouping import Cell
from simulation.reporting.panels import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0  # inches; at 100 pixels an inch this is what a README shows
RESOLUTION = 150  # pixels an inch
LETTER = 0.085  # inches, roughly, of a letter


def new_figure(
    panels: int, *, columns: int, title: str, panel_height: float = 3.3
) -> tuple[Figure, list[Axes]]:
    """A figure with its title, and the panels in it, line by line.

    Args:
        panels: how many.
        columns: the most beside each other; four panels are two by two even if three would fit.
        title: what the figure shows.
        panel_height: in inches, of the panel with what belongs to it.
    """
    from matplotlib.figure import Figure  # its own canvas is Agg: no display, no global state

    columns = max(1, min(columns, 2 if panels == 4 else 3, panels))
    rows = -(-panels // columns)
    figure = Figure((WIDTH, rows * panel_height + 1.1), dpi=RESOLUTION, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    found = [ax for row in grid for ax in row]
    for ax in found[panels:]:
        ax.remove()
    for ax in found[max(0, panels - columns) : panels]:
        ax.tick_params(labelbottom=True)  # of a column whose lowest panel was removed, too
    figure.suptitle(textwrap.fill(title, 78))
    return figure, found[:panels]


def columns_of(axes: Sequence[Axes]) -> int:
    """How many panels are beside each other."""
    spec = axes[0].get_gridspec()
    assert spec is not None  # they were made by subplots()
    return spec.ncols


def label_axes(axes: Sequence[Axes], x_label: str, y_label: str) -> None:
    """Name both axes once a column and once a row of panels."""
    columns = columns_of(axes)
    room = int(0.85 * WIDTH / columns / LETTER)
    for ax in axes[-columns:]:
        ax.set_xlabel(textwrap.fill(x_label, room))
    for ax in axes[::columns]:
        ax.set_ylabel(y_label)


def add_legend(figure: Figure, styles: dict[str, Style], *, line: bool, note: str) -> None:
    """Put the methods below the panels, where they hide nothing, with a note on what is drawn."""
    entry = LETTER * max(len(name) for name in styles) + 0.7
    figure.legend(
        handles=[style.handle(name, line) for name, style in styles.items()],
        loc="outside lower center",
        ncols=max(1, min(len(styles), int(WIDTH / entry))),
        handlelength=3.2 if line else 1.5,  # a line's dashes can be told
        title=note,
        title_fontproperties={"size": "small"},
    )


def seeds_note(cells: Sequence[Cell]) -> str:
    """How many seeds there are in a place: "3 seeds", "1 to 3 seeds"."""
    counts = sorted({cell.runs for cell in cells if cell.runs})
    if counts == [1]:
        return "1 seed"
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
