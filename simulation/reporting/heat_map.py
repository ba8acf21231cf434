"""A heat map of differences between a method and a baseline, in one panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulation.reporting.grouping import Cell
from simulation.reporting.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def draw_map(
    ax: Axes, cells: Sequence[Sequence[Cell]], baseline: Sequence[Sequence[Cell]], limit: float
) -> AxesImage:
    """Draw differences as a heat map, with the number in each cell, and its 95 % interval.

    A difference whose interval does not contain zero is bold.

    Args:
        ax: The panel.
        cells: The cells of the method, by row.
        baseline: The cells to subtract, by row.
        limit: The percentage points at the ends of the colour map, whose centre is zero.

    Returns:
        The image, for a colour bar.
    """
    from matplotlib import colormaps

    found = [
        [cell.minus(below) for cell, below in zip(row, row_below, strict=True)]
        for row, row_below in zip(cells, baseline, strict=True)
    ]
    colors = colormaps["PuOr_r"].with_extremes(bad="0.88")
    means = [[difference.mean for difference in row] for row in found]
    image = ax.imshow(means, cmap=colors, vmin=-limit, vmax=limit, aspect="auto")
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            text = _map_text(found[y][x], cell, baseline[y][x])
            ax.text(
                x, y, text, ha="center", va="center",
                fontsize="small" if "\n" not in text else "x-small",
                fontweight="bold" if found[y][x].word in ("ahead", "behind") else "normal",
                color="white" if abs(means[y][x]) > 0.6 * limit else "black",
            )  # fmt: skip
    return image


def _map_text(difference: Interval, cell: Cell, baseline: Cell) -> str:
    """Return the difference, its interval and the number of diverged runs."""
    lines = []
    if difference.number:
        lines.append(f"{difference.mean:+.1f}")
    if difference.number > 1:
        lines.append(f"± {difference.half:.1f}")
    for whose, of in (("", cell), ("baseline ", baseline)):
        if of.diverged:
            count = "" if of.diverged == of.runs else f"{of.diverged} of {of.runs} "
            lines.append(f"{whose}{count}diverged".replace(" diverged", "\ndiverged"))
    return "\n".join(lines) or "-"
