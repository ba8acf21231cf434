"""The layout of a figure: a grid of panels, labels at its edges, and a legend below it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fixbn_flwr.app.runs.line_styles import Style
from simulation.reporting.grouping import Cell
from simulation.reporting.panels import MARK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 8.0  # inches
RESOLUTION = 150  # pixels per inch
LETTER = 0.085  # approximate width of a letter, in inches


def new_figure(
    panels: int, *, columns: int, title: str, panel_height: float = 3.3
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a title, and its panels row by row.

    Args:
        panels: The number of panels.
        columns: The maximum number of columns. Four panels are two by two even if three fit.
        title: The title.
        panel_height: The height of a panel with its labels, in inches. Default: 3.3.
    """
    from matplotlib.figure import Figure  # uses Agg: no display, no global state

    columns = max(1, min(columns, 2 if panels == 4 else 3, panels))
    rows = -(-panels // columns)
    figure = Figure((WIDTH, rows * panel_height + 1.1), dpi=RESOLUTION, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    found = [ax for row in grid for ax in row]
    for ax in found[panels:]:
        ax.remove()
    for ax in found[max(0, panels - columns) : panels]:
        ax.tick_params(labelbottom=True)  # also where the lowest panel of a column was removed
    figure.suptitle(textwrap.fill(title, 78))
    return figure, found[:panels]


def columns_of(axes: Sequence[Axes]) -> int:
    """Return the number of columns of panels."""
    spec = axes[0].get_gridspec()
    assert spec is not None  # they are from subplots()
    return spec.ncols


def label_axes(axes: Sequence[Axes], x_label: str, y_label: str) -> None:
    """Label the x axis once per column and the y axis once per row of panels."""
    columns = columns_of(axes)
    room = int(0.85 * WIDTH / columns / LETTER)
    for ax in axes[-columns:]:
        ax.set_xlabel(textwrap.fill(x_label, room))
    for ax in axes[::columns]:
        ax.set_ylabel(y_label)


def add_legend(figure: Figure, styles: dict[str, Style], *, line: bool, note: str) -> None:
    """Add a legend of the methods, with a note, below the panels."""
    from matplotlib.lines import Line2D

    handles = []
    for name, style in styles.items():
        handle = Line2D([], [], color=style.color, marker=style.marker, markersize=MARK, label=name)
        handle.set(linestyle=style.dashes if line else "none")
        handles.append(handle)
    entry = LETTER * max(len(name) for name in styles) + 0.7
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(len(styles), int(WIDTH / entry))),
        handlelength=3.2 if line else 1.5,  # long enough to show the dashes of a line
        title=note,
        title_fontproperties={"size": "small"},
    )


def seeds_note(cells: Sequence[Cell]) -> str:
    """Return the number of seeds per cell, such as "3 seeds" or "1 to 3 seeds"."""
    counts = sorted({cell.runs for cell in cells if cell.runs})
    if counts == [1]:
        return "1 seed"
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
