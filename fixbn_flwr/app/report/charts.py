"""The charts of a report whose horizontal axis is the round, one curve per run.

A run has the style of its method in every chart, see :mod:`fixbn_flwr.app.runs.line_styles`. A star
marks its T*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

from fixbn_flwr.app.report.picture import Picture, picture_of
from fixbn_flwr.app.report.reported_run import ReportedRun
from fixbn_flwr.app.runs.figure import DISAGREEMENT, draw_line, smoothed_name, window_of
from fixbn_flwr.app.runs.summary import RoundMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOG_FROM_RATIO = 100.0
NARROW, WIDE = (5.4, 3.4), (10.8, 4.2)  # inches: a half and the whole of the page's width


@dataclass(frozen=True)
class Chart:
    """A value of each round.

    Attributes:
        name: The name of the value, with its unit.
        value: Returns it, or None in a round without it.
        scale: What it is multiplied by.
        noisy: Whether the curves of long runs are smoothed.
    """

    name: str
    value: Callable[[RoundMetrics], float | None]
    scale: float = 1.0
    noisy: bool = False


LEARNING = (
    Chart("training loss (nats)", lambda m: m.train_loss, noisy=True),
    Chart("test loss (nats)", lambda m: m.test_loss),
    Chart("learning rate", lambda m: m.learning_rate),
)
APART = (
    Chart("disagreement of running variances", lambda m: m.signals.get(DISAGREEMENT), noisy=True),
    Chart(
        "agreement of updates (1: unrelated)",
        lambda m: m.signals.get("fixbn-update-agreement"),
        noisy=True,
    ),
)
COST = (
    Chart("sent to clients (MB per round)", lambda m: m.bytes_sent or None, 1e-6),
    Chart("received from clients (MB per round)", lambda m: m.bytes_received or None, 1e-6),
    Chart("seconds per round", lambda m: m.seconds, noisy=True),
    Chart("slowest client's training (s)", lambda m: m.train_seconds, noisy=True),
)
DROPPED = Chart("dropped clients", lambda m: m.dropped)


def score_chart(runs: Sequence[ReportedRun]) -> Chart:
    """Return the chart of the test accuracy, or of what takes its place in these runs."""
    scores = " or ".join(dict.fromkeys(run.score for run in runs))
    return Chart(f"test {scores} (%)", lambda m: m.test_accuracy, 100.0)


def draw_charts(
    runs: Sequence[ReportedRun], charts: Sequence[Chart], *, wide: bool = False
) -> list[Picture]:
    """Draw the charts that have a value in some run.

    Args:
        runs: The runs.
        charts: What to draw.
        wide: Whether a chart takes the page's whole width. Default: half of it.
    """
    return [_draw(runs, chart, wide=wide) for chart in charts if _is_known(runs, chart)]


def _draw(runs: Sequence[ReportedRun], chart: Chart, *, wide: bool) -> Picture:
    from matplotlib.figure import Figure  # its canvas needs no display
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=WIDE if wide else NARROW, layout="constrained")
    ax = figure.subplots()
    last = max(m.round for run in runs for m in run.rounds)
    window = window_of(last) if chart.noisy else 1
    for place, run in enumerate(runs):
        points = [(m.round, chart.value(m)) for m in run.rounds]
        draw_line(ax, run.style, place, run.label, points, chart.scale, window)
        _mark_freeze(ax, run, chart, starred=window == 1)
    values = [value for run in runs for _, value in _values(run, chart)]
    if max(values) > _LOG_FROM_RATIO * min(values) > 0:
        ax.set_yscale("log")
    elif min(values) >= 0:
        # Room for T*, but no false impression of a change.
        ax.set_ylim(0, max(values) * 1.08 or 1.0)
    ax.set(xlabel="round", ylabel=smoothed_name(fill(chart.name, 22), window), xlim=(0, last + 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        lines = [line for line in ax.lines if not str(line.get_label()).startswith("_")]
        columns = 1 if max(len(run.label) for run in runs) > 24 else 2
        figure.legend(handles=lines, loc="outside lower center", ncols=columns, fontsize=9)
    return picture_of(figure, _in_words(runs, chart), wide=wide)


def _mark_freeze(ax: Axes, run: ReportedRun, chart: Chart, *, starred: bool) -> None:
    """Mark T* by a dotted line, and by a star where the curve has a value."""
    frozen = run.freeze_round
    if frozen is None:
        return
    color = run.style.color
    ax.axvline(frozen, color=color, linewidth=1.0, linestyle=(0, (1, 1.5)), label="_T*")
    for server_round, value in _values(run, chart):
        if starred and server_round == frozen:
            ax.plot(
                [frozen], [value], marker="*", markersize=14, markerfacecolor=color,
                markeredgecolor="black", markeredgewidth=0.8, label="_T*", zorder=3, clip_on=False,
            )  # fmt: skip
    ax.annotate(
        "T*",
        (frozen, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9,
    )


def _values(run: ReportedRun, chart: Chart) -> list[tuple[int, float]]:
    """Return the rounds that have a finite value, with it."""
    known = ((m.round, chart.value(m)) for m in run.rounds)
    return [
        (n, value * chart.scale) for n, value in known if value is not None and math.isfinite(value)
    ]


def _is_known(runs: Sequence[ReportedRun], chart: Chart) -> bool:
    return any(_values(run, chart) for run in runs)


def _in_words(runs: Sequence[ReportedRun], chart: Chart) -> str:
    parts = []
    for run in runs:
        values = _values(run, chart)
        if values:
            (first, start), (last, end) = values[0], values[-1]
            parts.append(f"{run.label}: {start:.4g} in round {first}, {end:.4g} in round {last}")
        else:
            parts.append(f"{run.label}: no value")
    return f"{chart.name} by round. {'; '.join(parts)}."
