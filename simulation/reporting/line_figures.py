"""Figures of lines: accuracy in the course of the rounds, and gradients from layer to layer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fixbn_flwr.method.schedule import freeze_round
from simulation.experiments.gradients import ALL_LAYERS
from simulation.experiments.result_log import Result
from simulation.reporting.figure_layout import add_legend, label_axes, new_figure, seeds_note
from simulation.reporting.grid_figures import check_axes, panel_settings
from simulation.reporting.grouping import cell_of, distinct, methods, results_of
from simulation.reporting.panels import (
    Scale,
    Style,
    draw_diverged,
    scale_of,
    set_scale,
    style,
    styles_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = 8  # markers on a line

_MEASURED = {
    "cosine": (
        "cosine with the\ncentralised update",
        "1: the direction of the centralised update; 0: at a right angle to it",
    ),
    "norm_ratio": (
        "length over that of the\ncentralised update",
        "1: as long as the centralised update",
    ),
}


def draw_courses(
    results: Sequence[Result],
    panels: str | None,
    path: Path,
    title: str,
    y_label: str = "test accuracy (%)",
) -> None:
    """Draw the accuracy in the course of the runs into a PNG file; see `figure_of_courses`."""
    figure_of_courses(results, panels, title, y_label).savefig(path, format="png")


def figure_of_courses(
    results: Sequence[Result], panels: str | None, title: str, y_label: str = "test accuracy (%)"
) -> Figure:
    """Mean accuracy by share of the rounds, a line a method, with a band from lowest to highest.

    A run counts until it diverges; an open marker below the panel shows when that was. An
    upright line shows T*, where there are runs that freeze.

    Args:
        results: of one grid.
        panels: its only axis, whose values get a panel each; None: it has no axis, one panel.
        title: what the figure shows.
        y_label: what is measured, with its unit.

    Raises:
        ConfigError: there is no result, or there are other axes.
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
        note = f"mean of {note}, with a band from the lowest to the highest"
    if freezes:
        note += "; upright line: T*, after which FixBN's statistics are frozen"
    add_legend(figure, styles_of(names), line=True, note=note)
    return figure


def draw_gradients(
    rows: Sequence[Mapping[str, Any]],
    measured: Literal["cosine", "norm_ratio"],
    path: Path,
    title: str,
) -> None:
    """Draw gradients from layer to layer into a PNG file; see `figure_of_gradients`."""
    figure_of_gradients(rows, measured, title).savefig(path, format="png")


def figure_of_gradients(
    rows: Sequence[Mapping[str, Any]], measured: Literal["cosine", "norm_ratio"], title: str
) -> Figure:
    """The federated update beside the centralised one by layer: a panel a model and step count.

    Args:
        rows: comparisons with "model", "local_steps", "mode", "name", "depth" and what is measured,
            of several runs the mean; those of all layers together are not drawn.
        measured: the cosine of the two updates, or the ratio of their lengths.
        title: what the figure shows.
    """
    layers = [row for row in rows if row["name"] != ALL_LAYERS]
    models = distinct(str(row["model"]) for row in layers)
    modes = distinct(str(row["mode"]) for row in layers)
    steps = sorted({int(row["local_steps"]) for row in layers})
    figure, grid = new_figure(
        len(models) * len(steps), columns=len(steps), title=title, panel_height=2.3
    )
    places = [(model, count) for model in models for count in steps]
    for ax, (model, count) in zip(grid, places, strict=True):
        for index, mode in enumerate(modes):
            found: dict[int, list[float]] = {}
            for row in layers:
                if (row["model"], row["local_steps"], row["mode"]) == (model, count, mode):
                    found.setdefault(row["depth"], []).append(row[measured])
            _plot(
                ax,
                [(depth, statistics.fmean(of)) for depth, of in sorted(found.items())],
                style(index),
                index,
            )
        ax.set_title(f"{model}, {count} local step{'s' * (count != 1)}", fontsize="medium")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    label, note = _MEASURED[measured]
    label_axes(grid, "layer, from the input on", label)
    add_legend(figure, {mode: style(k) for k, mode in enumerate(modes)}, line=True, note=note)
    return figure


def _freezes_after(run: Result) -> float:
    """T* as share of the rounds in %."""
    rounds: int = run.run_config["num-server-rounds"]
    return 100 * freeze_round(run.run_config["freeze-after"], rounds) / rounds


def _course(run: Result) -> dict[float, float]:
    """Accuracy in % by share of the rounds in %, until the loss is not a number any more."""
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
    """A line with some markers, which begin elsewhere on each, so that of two equal both show."""
    step = max(1, len(points) // MARKS)
    ax.plot(
        [x for x, _ in points], [y for _, y in points], color=drawn.color, linestyle=drawn.dashes,
        marker=drawn.marker, markersize=4.5, markevery=(index % step, step), linewidth=1.6,
    )  # fmt: skip
