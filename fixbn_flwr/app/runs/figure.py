"""Draw the figure of one or more runs: accuracy and loss by round.

The colors are Okabe and Ito's, which color-blind readers can distinguish. Each run also has its own
line style and marker, so the figure works in grayscale.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fixbn_flwr.tasks import find_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fixbn_flwr.app.config.settings import Settings
    from fixbn_flwr.app.runs.summary import RoundMetrics

# Color, line style and marker, in the order of the runs.
STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#56B4E9", "-", "v"),
    ("#E69F00", "--", "P"),
    ("#000000", "-.", "X"),
)
_MARKERS_PER_LINE = 12
_LOG_FROM_RATIO = 100.0
DISAGREEMENT = "fixbn-variance-disagreement"


def figure_title(settings: "Settings", clients: int) -> str:
    """Return a figure's title, such as "digits, 10 clients, 2 classes each"."""
    partition = {
        "iid": "IID",
        "dirichlet": f"Dirichlet({settings.partition_alpha:g})",
        "classes": f"{settings.partition_classes} classes each",
        "natural": "natural partition",
    }[settings.partition]
    score = "" if find_task(settings.task).masks is None else " (accuracy is mean IoU)"
    return f"{settings.task_name}, {clients} clients, {partition}{score}"


def draw_curves(
    runs: "Mapping[str, Sequence[RoundMetrics]]",
    freeze_round: int | None,
    path: Path,
    *,
    title: str,
) -> None:
    """Draw accuracy, losses and the clients' disagreement of each run into a PNG file.

    Rounds without a finite value are left out. Clients disagree until the statistics are frozen.

    Args:
        runs: The rounds of each run, by label.
        freeze_round: T*. The rounds after it are shaded as calibration. None shades nothing.
        path: The file.
        title: The figure's title.
    """
    from matplotlib.figure import Figure  # its canvas is Agg: no display, no global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.0, 6.4), dpi=120, layout="constrained")
    axes = figure.subplot_mosaic(
        [["accuracy"] * 3, ["train", "test", "disagreement"]], height_ratios=(1.4, 1.0)
    )
    axes["test"].sharex(axes["train"])
    axes["test"].sharey(axes["train"])
    for index, (label, rounds) in enumerate(runs.items()):
        style = index % len(STYLES)
        draw_line(
            axes["accuracy"], style, label, [(m.round, m.test_accuracy, 100.0) for m in rounds]
        )
        draw_line(axes["train"], style, label, [(m.round, m.train_loss, 1.0) for m in rounds])
        draw_line(axes["test"], style, label, [(m.round, m.test_loss, 1.0) for m in rounds])
        apart = [(m.round, m.signals.get(DISAGREEMENT), 1.0) for m in rounds]
        draw_line(axes["disagreement"], style, label, apart)

    axes["accuracy"].set(ylabel="test accuracy (%)", ylim=(0, 102))
    axes["train"].set(ylabel="training loss (nats)")
    axes["test"].set(ylabel="test loss (nats)")
    axes["disagreement"].set(ylabel="clients' disagreement")
    if any(y > 0 for line in axes["disagreement"].lines for y in np.asarray(line.get_ydata())):
        axes["disagreement"].set_yscale("log")
    losses = [
        loss
        for rounds in runs.values()
        for m in rounds
        for loss in (m.train_loss, m.test_loss)
        if loss is not None and math.isfinite(loss)
    ]
    if losses and max(losses) > _LOG_FROM_RATIO * min(losses) > 0:
        axes["train"].set_yscale("log")
    last_round = max((m.round for rounds in runs.values() for m in rounds), default=1)
    for ax in axes.values():
        ax.set(xlabel="round", xlim=(0, last_round + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        if freeze_round is not None and freeze_round < last_round:
            ax.axvspan(freeze_round, last_round + 0.5, color="0.92", zorder=0)
            ax.axvline(freeze_round, color="0.3", linewidth=1.0, linestyle=(0, (1, 1)))
    if freeze_round is not None and freeze_round < last_round:
        axes["accuracy"].annotate(
            f"T* = {freeze_round}, then calibration",
            (freeze_round, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
        )
    # Outside the plots, where it covers no curve.
    figure.legend(handles=axes["accuracy"].lines[: len(runs)], loc="outside lower center", ncols=4)
    figure.suptitle(title)
    figure.savefig(path, format="png")


def draw_line(
    ax: "Axes", style: int, label: str, points: Sequence[tuple[int, float | None, float]]
) -> None:
    """Draw a run's curve through the rounds that have a finite value, each times its scale.

    Args:
        ax: Where to draw it.
        style: Which of `STYLES` the run has.
        label: Its name in the legend.
        points: Round, value and scale.
    """
    known = [(x, y * scale) for x, y, scale in points if y is not None and math.isfinite(y)]
    color, dashes, marker = STYLES[style]
    step = max(1, len(known) // _MARKERS_PER_LINE)
    ax.plot(
        [x for x, _ in known],
        [y for _, y in known],
        color=color,
        linestyle=dashes,
        linewidth=1.6,
        marker=marker,
        markersize=4.5,
        # Each run's markers start at another round, so both of two equal curves are visible.
        markevery=(style % step, step),
        label=label,
    )
