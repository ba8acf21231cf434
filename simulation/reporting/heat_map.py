"""A heat map of differences between a method and a baseline, in one panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulation.reporting.grouping import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def difference(cell: Cell, baseline: Cell) -> float:
    """Return a cell's mean minus the baseline's, in percentage points; NaN if one has no mean."""
    return cell.mean - baseline.mean


def draw_map(
    ax: Axes, cells: Sequence[Sequence[Cell]], baseline: Sequence[Sequence[Cell]], limit: float
) -> AxesImage:
    """Draw differences as a heat map, with the number in each cell.

    Args:
        ax: The panel.
        cells: The cells of the method, by row.
        baseline: The cells to subtract, by row.
        limit: The percentage points at the ends of the color map, whose center is zero.

    Returns:
        The image, for a color bar.
    """
    from matplotlib import colormaps

    found = [
        [difference(cell, below) for cell, below in zip(row, row_below, strict=True)]
        for row, row_below in zip(cells, baseline, strict=True)
    ]
    colors = colormaps["PuOr_r"].with_extremes(bad="0.88")
    image = ax.imshow(found, cmap=colors, vmin=-limit, vmax=limit, aspect="auto")
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            text = _map_text(cell, baseline[y][x])
            ax.text(
                x, y, text, ha="center", va="center",
                fontsize="medium" if "\n" not in text else "x-small",
                color="white" if abs(found[y][x]) > 0.6 * limit else "black",
            )  # fmt: skip
    return image


def _map_text(cell: Cell, baseline: Cell) -> str:
    """Return the difference, and the number of diverged runs."""
    found = difference(cell, baseline)
    lines = [] if math.isnan(found) else [f"{found:+.1f}"]
    for whose, of in (("", cell), ("baseline ", baseline)):
        if of.diverged:
            count = "" if of.diverged == of.runs else f"{of.diverged} of {of.runs} "
            lines.append(f"{whose}{count}diverged".replace(" diverged", "\ndiverged"))
    return "\n".join(lines) or "-"
