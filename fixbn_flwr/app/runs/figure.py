"""Draw the figure of one or more runs: accuracy and loss by round."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fixbn_flwr.app.runs.line_styles import Style, styles_of
from fixbn_flwr.tasks import find_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fixbn_flwr.app.config.settings import Settings
    from fixbn_flwr.app.runs.summary import RoundMetrics

_MARKERS_PER_LINE = 12
# A noisy curve of more rounds than this shows means, so many in a row.
_SMOOTHED_FROM, _WINDOWS = 200, 50
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

    Accuracy and loss are the server's, or the clients' if the server has no test images in any run.
    Rounds without a finite value are left out. Clients disagree until the statistics are frozen.

    Args:
        runs: The rounds of each run, by label.
        freeze_round: T*. The rounds after it are shaded as calibration. None shades nothing.
        path: The file.
        title: The figure's title.
    """
    from matplotlib.figure import Figure  # its canvas is Agg: no display, no global state
    from matplotlib.ticker import MaxNLocator

    everything = [m for rounds in runs.values() for m in rounds]
    last_round = max((m.round for m in everything), default=1)
    window = window_of(last_round)
    by_clients = not any(m.test_accuracy is not None for m in everything)
    tested = "validation" if by_clients and everything else "test"
    lower: list[Any] = ["train", "test"]
    if not everything or any(DISAGREEMENT in m.signals for m in everything):
        lower.append("disagreement")  # runs of older versions did not measure it
    figure = Figure(figsize=(9.0, 6.4), dpi=120, layout="constrained")
    axes = figure.subplot_mosaic([["accuracy"] * len(lower), lower], height_ratios=(1.4, 1.0))
    axes["test"].sharex(axes["train"])
    axes["test"].sharey(axes["train"])
    styles = styles_of(runs)
    for place, ((label, rounds), style) in enumerate(zip(runs.items(), styles, strict=True)):
        values = {
            "accuracy": [getattr(m, f"{tested}_accuracy") for m in rounds],
            "train": [m.train_loss for m in rounds],
            "test": [getattr(m, f"{tested}_loss") for m in rounds],
            "disagreement": [m.signals.get(DISAGREEMENT) for m in rounds],
        }
        for name, ax in axes.items():
            points = [(m.round, value) for m, value in zip(rounds, values[name], strict=True)]
            scale = 100.0 if name == "accuracy" else 1.0
            draw_line(ax, style, place, label, points, scale, window if name == "train" else 1)

    axes["accuracy"].set(ylabel=f"{tested} accuracy (%)", ylim=(0, 102))
    axes["train"].set(ylabel=smoothed_name("training loss (nats)", window))
    axes["test"].set(ylabel=f"{tested} loss (nats)")
    if "disagreement" in axes:
        axes["disagreement"].set(ylabel="clients' disagreement")
        if any(m.signals.get(DISAGREEMENT, 0) > 0 for m in everything):
            axes["disagreement"].set_yscale("log")
    losses = [
        loss
        for m in everything
        for loss in (m.train_loss, getattr(m, f"{tested}_loss"))
        if loss is not None and math.isfinite(loss)
    ]
    if losses and max(losses) > _LOG_FROM_RATIO * min(losses) > 0:
        axes["train"].set_yscale("log")
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


def window_of(rounds: int) -> int:
    """Return over how many rounds the noisy curves of so long a run are averaged; 1 for none."""
    return rounds // _WINDOWS if rounds > _SMOOTHED_FROM else 1


def smoothed_name(name: str, window: int) -> str:
    """Return the label of an axis whose curves are means over so many rounds."""
    return name if window == 1 else f"{name},\nmean of {window} rounds"


def draw_line(
    ax: "Axes",
    style: Style,
    place: int,
    label: str,
    points: Sequence[tuple[int, float | None]],
    scale: float = 1.0,
    window: int = 1,
) -> None:
    """Draw a run's curve through the rounds that have a finite value.

    Args:
        ax: Where to draw it.
        style: The run's style.
        place: The number of the run in the figure, from 0.
        label: Its name in the legend.
        points: Round and value.
        scale: What values are multiplied by. Default: 1.0.
        window: The curve is the mean of so many values until each round, with the values faint
            behind it. Default: 1, the values themselves.
    """
    known = [(x, y * scale) for x, y in points if y is not None and math.isfinite(y)]
    rounds, values = [x for x, _ in known], [y for _, y in known]
    if window > 1:
        ax.plot(rounds, values, color=style.color, linewidth=0.5, alpha=0.3, label="_raw")
        values = _trailing_means(values, window)
    step = max(1, len(known) // _MARKERS_PER_LINE)
    ax.plot(
        rounds,
        values,
        color=style.color,
        linestyle=style.dashes,
        linewidth=1.6,
        marker=style.marker,
        markersize=4.5,
        # Each run's markers start at another round, so both of two equal curves are visible.
        markevery=(place % step, step),
        label=label,
        clip_on=not known,  # the marker of the last round is whole
    )


def _trailing_means(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of the last values until each place: nothing after T* changes it at T*."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return list((sums[ends] - sums[starts]) / (ends - starts))
