"""Draw points and lines into one panel of a figure.

The styles are those of a run's figure, see :mod:`fixbn_flwr.app.runs.line_styles`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from fixbn_flwr.app.runs import line_styles
from fixbn_flwr.app.runs.line_styles import Style
from simulation.reporting.grouping import Cell, as_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform

# Methods under other names.
_AS = {"never": "BN", "T* 50 %": "FixBN"}
LOG_FROM_RATIO = 20.0
LEAST_SPAN = 5.0  # the smallest range of a panel, in percentage points
MARK, DOT = 5.5, 3.5  # points


class Scale(NamedTuple):
    """The y axis that all panels share, in %, with a strip below it for diverged runs.

    Attributes:
        low: The lowest accuracy shown.
        high: The highest accuracy shown.
        stack: The most diverged runs in one cell, which sets the height of the strip; 0 for no
            strip.
    """

    low: float
    high: float
    stack: int

    @property
    def row(self) -> float:
        """The height of a diverged run's marker."""
        return 0.055 * (self.high - self.low)

    @property
    def bottom(self) -> float:
        """The lower edge of the strip, or of the axis if there is no strip."""
        return self.low - self.row * (self.stack + 0.6 if self.stack else 0)


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Return the style of each method, that of a run's figure."""
    names = list(names)
    return dict(zip(names, line_styles.styles_of(_AS.get(n, n) for n in names), strict=True))


def scale_of(accuracies: Sequence[float], stack: int) -> Scale:
    """Return the scale for these accuracies, in %, and `stack` diverged runs in one cell."""
    low, high = min(accuracies, default=0.0), max(accuracies, default=100.0)
    margin = max(0.06 * (high - low), (LEAST_SPAN - (high - low)) / 2)
    return Scale(max(0.0, low - margin), min(100.0, high + margin), stack)


def bar_of(cell: Cell) -> tuple[float, ...]:
    """Return the ends of the mean's 95 % interval within 0 and 100 %; empty with one seed."""
    found = cell.interval
    if found.number < 2:
        return ()
    return max(0.0, found.mean - found.half), min(100.0, found.mean + found.half)


def set_scale(ax: Axes, scale: Scale) -> None:
    """Set the y axis of a panel, with a strip for diverged runs if the scale has one."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(scale.low, scale.high)
    ticks = [float(tick) for tick in ticks if scale.low <= tick <= scale.high]
    labels = [f"{tick:g}" for tick in ticks]
    if scale.stack:
        ax.axhspan(scale.bottom, scale.low, color="0.92", zorder=0.9)
        ax.axhline(scale.low, color="0.4", linewidth=0.8)
        ticks.append((scale.bottom + scale.low) / 2)
        labels.append("diverged")
    ax.set_yticks(ticks, labels)
    ax.set_ylim(scale.bottom, scale.high)
    ax.set_axisbelow(True)  # the strip covers the grid line
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def draw_points(
    ax: Axes, rows: Mapping[str, Sequence[Cell]], labels: Sequence[str], scale: Scale, room: float
) -> None:
    """Draw a marker for each cell, with the methods side by side at each label.

    Args:
        ax: The panel.
        rows: The cells of each method, one per label; a cell without runs is not drawn.
        labels: The labels of the x axis, wrapped if they are too long.
        scale: The scale of the y axis.
        room: The width of a label, in letters.
    """
    width = 0.8 / len(rows)
    styles = styles_of(rows)
    for index, (name, cells) in enumerate(rows.items()):
        offset = (index - (len(rows) - 1) / 2) * width
        for position, cell in enumerate(cells):
            _draw_cell(ax, position + offset, cell, styles[name], scale, ax.transData)
    for position in range(1, len(labels)):
        ax.axvline(position - 0.5, color="0.85", linewidth=0.8, zorder=0.5)
    ax.set_xticks(range(len(labels)), _wrapped(labels, room))
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.5, len(labels) - 0.5)


def draw_lines(
    ax: Axes, rows: Mapping[str, Sequence[Cell]], labels: Sequence[str], scale: Scale, room: float
) -> None:
    """Draw the means of each method as a line; for the arguments see `draw_points`.

    Labels that are numbers are positions on the x axis, which is logarithmic if they span a ratio
    above 20. If there is no room for all labels, every second one is drawn, or fewer.
    """
    from matplotlib.ticker import NullLocator
    from matplotlib.transforms import ScaledTranslation

    numbers = as_numbers(labels)
    positions = numbers or [float(k) for k in range(len(labels))]
    low, high = min(positions), max(positions)
    margin = 0.07 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    if numbers and low > 0 and high > LOG_FROM_RATIO * low:
        ax.set_xscale("log")
        limits = (low * (low / high) ** 0.07, high * (high / low) ** 0.07)
    inches = ax.get_figure(root=True).dpi_scale_trans  # type: ignore[union-attr]
    styles = styles_of(rows)
    for index, (name, cells) in enumerate(rows.items()):
        # Shift each method by 3 points, so that bars do not overlap.
        shift = 3 / 72 * (index - (len(rows) - 1) / 2)
        transform = ax.transData + ScaledTranslation(shift, 0, inches)
        drawn = styles[name]
        ax.plot(
            positions, [cell.mean for cell in cells], color=drawn.color, linestyle=drawn.dashes,
            linewidth=1.6, transform=transform,
        )  # fmt: skip
        for position, cell in zip(positions, cells, strict=True):
            _draw_cell(ax, position, cell, drawn, scale, transform)
    every = math.ceil((max(map(len, labels)) + 1) / room) if numbers else 1
    ticks = slice(None, None, every)
    ax.set_xticks(positions[ticks], _wrapped(labels[ticks], room * every))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(limits)


def _wrapped(labels: Sequence[str], room: float) -> list[str]:
    width = max(5, int(room))
    return [textwrap.fill(label, width, break_long_words=False) for label in labels]


def _draw_cell(
    ax: Axes, x: float, cell: Cell, style: Style, scale: Scale, transform: Transform
) -> None:
    """Draw the mean on its interval, the seeds as dots, and diverged runs as open markers."""
    from matplotlib.colors import to_rgba

    if len(cell.accuracies) > 1:
        bar = bar_of(cell)
        ax.plot([x] * len(bar), bar, color=style.color, linewidth=1.0, transform=transform)
        ax.plot(
            [x] * len(cell.accuracies), cell.accuracies, linestyle="none", marker="o",
            markersize=DOT, markerfacecolor=to_rgba(style.color, 0.45), markeredgewidth=0,
            transform=transform,
        )  # fmt: skip
    if cell.accuracies:
        ax.plot(
            [x], [cell.mean], color=style.color, marker=style.marker, markersize=MARK,
            linestyle="none", transform=transform,
        )  # fmt: skip
    draw_diverged(ax, [x] * cell.diverged, style, scale, transform)


def draw_diverged(
    ax: Axes, positions: Sequence[float], style: Style, scale: Scale, transform: Transform
) -> None:
    """Draw diverged runs as open markers in the strip below the panel, stacked."""
    ax.plot(
        positions, [scale.low - scale.row * (k + 0.8) for k in range(len(positions))],
        color=style.color, marker=style.marker, markersize=MARK - 1, markerfacecolor="white",
        markeredgewidth=1.2, linestyle="none", transform=transform,
    )  # fmt: skip
