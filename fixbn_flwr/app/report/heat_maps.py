"""The heat maps of a report: disagreement by layer and round, and the confusion matrix.

Both color scales run evenly from light to dark, in gray and for color-blind readers too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fixbn_flwr.app.report.confusion import Confusion
from fixbn_flwr.app.report.picture import Picture, picture_of
from fixbn_flwr.app.report.reported_run import ReportedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED, _NUMBERED = 40, 12  # up to so many classes have their name and their numbers
_MOST_ROWS = 60  # more layer names would not be readable


def draw_layers(run: ReportedRun) -> Picture | None:
    """Draw how far the clients' statistics lie apart, by layer and round.

    Returns:
        None if no round has measured it.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    measured = [m for m in run.rounds if m.disagreement_by_layer]
    layers = list(dict.fromkeys(name for m in measured for name in m.disagreement_by_layer))
    first, last = (measured[0].round, measured[-1].round) if measured else (0, -1)
    values = np.full((len(layers), last - first + 1), np.nan)
    for m in measured:
        for layer, value in m.disagreement_by_layer.items():
            values[layers.index(layer), m.round - first] = value
    values[~(values > 0)] = np.nan  # a single client does not disagree
    if not np.isfinite(values).any():
        return None
    figure = Figure(figsize=(10.8, 1.6 + 0.24 * min(len(layers), _MOST_ROWS)), layout="constrained")
    ax = figure.subplots()
    image = ax.imshow(
        values,
        aspect="auto",
        interpolation="none",
        cmap="cividis_r",
        norm=LogNorm(np.nanmin(values), np.nanmax(values)),
        extent=(first - 0.5, last + 0.5, len(layers) - 0.5, -0.5),
    )
    ax.set_facecolor("0.9")
    figure.colorbar(image, label="disagreement", pad=0.01)
    step = -(-len(layers) // _MOST_ROWS)
    ax.set_yticks(range(0, len(layers), step), layers[::step])
    ax.set(xlabel="round", ylabel="layer, from input to output")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    most = layers[int(np.nanargmax(np.nanmean(values, axis=1)))]
    text = (
        f"Disagreement of the running variances in {len(layers)} layers of {run.label}, rounds "
        f"{first} to {last}. It is largest in {most}."
    )
    return picture_of(figure, text, wide=True)


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


def _write_numbers(ax: Axes, percent: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    for (row, column), value in np.ndenumerate(percent):
        if value > 0:
            text = f"{value:.0f}" if value >= 1 else "<1"
            color = "white" if value > 40 else "black"
            ax.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
