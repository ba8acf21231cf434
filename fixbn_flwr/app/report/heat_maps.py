"""The heat maps of a report: by layer and round, by client and round, and the confusion matrix.

Both colour scales run evenly from light to dark, in grey and for colour-blind readers too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fixbn_flwr.app.report.confusion import Confusion
from fixbn_flwr.app.report.picture import Picture, picture_of
from fixbn_flwr.app.report.reported_run import ReportedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
_NAMED, _NUMBERED = 40, 12  # up to so many classes have their name and their numbers
_MOST_ROWS = 60  # more layer names would not be readable


def draw_layers(run: ReportedRun) -> Picture | None:
    """Draw how far the clients' statistics lie apart, by layer and round.

    Returns:
        None if no round has measured it.
    """
    from matplotlib.colors import LogNorm

    layers, values, first = _by_round({m.round: m.disagreement_by_layer for m in run.rounds})
    values[~(values > 0)] = np.nan  # a single client does not disagree
    if not np.isfinite(values).any():
        return None
    norm = LogNorm(np.nanmin(values), np.nanmax(values))
    figure = _draw_by_round(
        values, layers, first, norm, "disagreement", "layer, from input to output"
    )
    most = layers[int(np.nanargmax(np.nanmean(values, axis=1)))]
    text = (
        f"Disagreement of the running variances in {len(layers)} layers of {run.label}, rounds "
        f"{first} to {first + values.shape[1] - 1}. It is largest in {most}."
    )
    return picture_of(figure, text, wide=True)


def draw_validations(run: ReportedRun) -> Picture | None:
    """Draw how well the global model does on the images that each client holds out, by round.

    Returns:
        None if no client has validated it.
    """
    from matplotlib.colors import Normalize

    clients, values, first = _by_round({m.round: m.validation_by_client for m in run.rounds})
    if not clients:
        return None
    figure = _draw_by_round(
        100 * values, clients, first, Normalize(0, 100), f"{run.score} (%)", "client"
    )
    last = values[:, -1]
    text = (
        f"Validation {run.score} of {len(clients)} clients of {run.label} by round. In the last "
        f"of these rounds it is {np.nanmin(last):.1%} to {np.nanmax(last):.1%}."
    )
    return picture_of(figure, text, wide=True)


def _by_round(
    rounds: Mapping[int, Mapping[str, float]],
) -> tuple[list[str], Floats, int]:
    """Return the names, the values `[name, round]` or NaN, and the first round that has some."""
    measured = {number: values for number, values in rounds.items() if values}
    names = list(dict.fromkeys(name for values in measured.values() for name in values))
    first, last = (min(measured), max(measured)) if measured else (0, -1)
    table = np.full((len(names), last - first + 1), np.nan)
    for number, values in measured.items():
        for name, value in values.items():
            table[names.index(name), number - first] = value
    return names, table, first


def _draw_by_round(
    values: Floats, names: Sequence[str], first: int, norm: Normalize, meaning: str, rows: str
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10.8, 1.6 + 0.24 * min(len(names), _MOST_ROWS)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(
        values,
        aspect="auto",
        interpolation="none",
        cmap="cividis_r",
        norm=norm,
        extent=(first - 0.5, first + values.shape[1] - 0.5, len(names) - 0.5, -0.5),
    )
    ax.set_facecolor("0.9")
    figure.colorbar(image, label=meaning, pad=0.01)
    step = -(-len(names) // _MOST_ROWS)
    ax.set_yticks(range(0, len(names), step), names[::step])
    ax.set(xlabel="round", ylabel=rows)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def draw_confusion(confusion: Confusion, label: str) -> Picture:
    """Draw a confusion matrix, in percent of the true class.

    Args:
        confusion: The matrix.
        label: The label of the run.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    percent = 100 * confusion.shares
    names, classes = confusion.class_names, len(confusion.class_names)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    ax = figure.subplots()
    # The square root shows rare confusions beside the diagonal.
    image = ax.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="none")
    ax.set_facecolor("0.9")
    figure.colorbar(image, label="% of the true class", shrink=0.85)
    if classes <= _NAMED:
        size = 10 if classes <= _NUMBERED else 7
        rotation = 0 if max(map(len, names)) <= 2 else 90
        ax.set_xticks(range(classes), names, fontsize=size, rotation=rotation)
        ax.set_yticks(range(classes), names, fontsize=size)
    if classes <= _NUMBERED:
        _write_numbers(ax, percent)
    ax.set(xlabel="predicted class", ylabel="true class")
    right = np.diagonal(percent)
    worst = names[int(np.nanargmin(right))]
    text = (
        f"Confusion matrix of {label}, {classes} classes. The model is right in "
        f"{np.nanmean(right):.1f} % of a class on average, and least often for {worst}: "
        f"{np.nanmin(right):.1f} %."
    )
    return picture_of(figure, text)


def _write_numbers(ax: Axes, percent: Floats) -> None:
    for (row, column), value in np.ndenumerate(percent):
        if value > 0:
            text = f"{value:.0f}" if value >= 1 else "<1"
            color = "white" if value > 40 else "black"
            ax.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
