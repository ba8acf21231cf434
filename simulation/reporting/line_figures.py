"""Line figures: accuracy by round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fixbn_flwr.app.runs.line_styles import Style
from fixbn_flwr.method.schedule import freeze_round
from simulation.experiments.result_log import Result
from simulation.reporting.figure_layout import add_legend, label_axes, new_figure, seeds_note
from simulation.reporting.grid_figures import check_axes, panel_settings
from simulation.reporting.grouping import cell_of, methods, results_of
from simulation.reporting.panels import (
    Scale,
    draw_diverged,
    scale_of,
    set_scale,
    styles_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = 8  # markers per line


def draw_courses(
    results: Sequence[Result],
    panels: str | None,
    path: Path,
    title: str,
    y_label: str = "test accuracy (%)",
) -> None:
    """Save the accuracy by round as PNG; see `figure_of_courses`."""
    figure_of_courses(results, panels, title, y_label).savefig(path, format="png")


def figure_of_courses(
    results: Sequence[Result], panels: str | None, title: str, y_label: str = "test accuracy (%)"
) -> Figure:
    """Return the mean accuracy by share of the rounds, with a band from minimum to maximum.

    A run is included until it diverges. An open marker below the panel shows when it does. A
    vertical line shows T* if there are runs that freeze.

    Args:
        results: The results of one grid.
        panels: The only axis of the grid, with a panel per value; None if the grid has no axis.
        title: The title.
        y_label: The label of the y axis, with its unit. Default: "test accuracy (%)".

    Raises:
        ConfigError: If there is no result, or the grid has other axes.
    """
    shown = results_of(results)
    check_axes(shown, [] if panels is None else [panels])
    names = methods(shown)
    panels_of = {
        heading: [
            [run for run in shown if run.method == name and setting.items() <= run.setting.items()]
            for name in names
        ]
        for heading, setting in panel_settings(shown, panels)
    }
    cells = [cell_of(runs) for rows in panels_of.values() for runs in rows]
    scale = scale_of(
        [accuracy for run in shown for accuracy in _course(run).values()],
        max(cell.diverged for cell in cells),
    )
    figure, grid = new_figure(len(panels_of), columns=2, title=title)
    freezes = sorted({share for run in shown if (share := _freezes_after(run)) < 100})
    for ax, (heading, rows) in zip(grid, panels_of.items(), strict=True):
        for index, (drawn, runs) in enumerate(zip(styles_of(names).values(), rows, strict=True)):
            _draw_course(ax, runs, drawn, index, scale)
        for share in freezes:
            ax.axvline(share, color="0.5", linewidth=0.8, zorder=0)
        set_scale(ax, scale)
        ax.set_title(heading, fontsize="medium")
        ax.set_xlim(0, 102)
    label_axes(grid, "share of the rounds (%)", y_label)
    note = seeds_note(cells)
    if note != "1 seed":
        note = f"mean of {note}, with a band from minimum to maximum"
    if freezes:
        note += "; vertical line: T*, after which FixBN's statistics are frozen"
    add_legend(figure, styles_of(names), line=True, note=note)
    return figure


def _freezes_after(run: Result) -> float:
    """Return T* as a share of the rounds, in %."""
    rounds: int = run.run_config["num-server-rounds"]
    frozen = run.freeze_round
    if frozen is None:  # an older result, whose config has it
        frozen = freeze_round(run.run_config["freeze-after"], rounds)
    return 100 * frozen / rounds


def _course(run: Result) -> dict[float, float]:
    """Return the accuracy in % by share of the rounds in %, as long as the loss is finite."""
    rounds = run.run_config["num-server-rounds"]
    course = {}
    for number in sorted(run.accuracies):
        if not math.isfinite(run.losses[number]):
            break
        course[round(100 * number / rounds, 6)] = 100 * run.accuracies[number]
    return course


def _draw_course(ax: Axes, runs: Sequence[Result], drawn: Style, index: int, scale: Scale) -> None:
    courses = [_course(run) for run in runs]
    shares = sorted({share for course in courses for share in course})
    by_share = [[course[share] for course in courses if share in course] for share in shares]
    _plot(ax, list(zip(shares, map(statistics.fmean, by_share), strict=True)), drawn, index)
    if len(runs) > 1:
        ax.fill_between(
            shares, [min(found) for found in by_share], [max(found) for found in by_share],
            color=drawn.color, alpha=0.18, linewidth=0,
        )  # fmt: skip
    ends = [
        max(course, default=0.0) for course, run in zip(courses, runs, strict=True) if run.diverged
    ]
    draw_diverged(ax, ends, drawn, scale, ax.transData)


def _plot(ax: Axes, points: Sequence[tuple[float, float]], drawn: Style, index: int) -> None:
    """Plot a line with markers, shifted by index so that equal lines stay visible."""
    step = max(1, len(points) // MARKS)
    ax.plot(
        [x for x, _ in points], [y for _, y in points], color=drawn.color, linestyle=drawn.dashes,
        marker=drawn.marker, markersize=4.5, markevery=(index % step, step), linewidth=1.6,
    )  # fmt: skip
