"""The figure and the table of the comparisons of updates, by layer and round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from simulation.experiments.gradient_runs import OWN
from simulation.experiments.updates import ALL_LAYERS
from simulation.reporting.figure_layout import label_axes, new_figure
from simulation.reporting.tables import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_updates(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Save the comparison of updates as PNG; see `figure_of_updates`."""
    figure_of_updates(rows).savefig(path, format="png")


def figure_of_updates(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Return a heat map of the cosine by layer and round for each method, mode and step count.

    Args:
        rows: The comparisons, with "method", "share" (of the rounds), "mode", "local_steps",
            "name", "depth" and "cosine". The mean over the runs is shown, without the rows named
            "all layers".
    """
    layers = pd.DataFrame([row for row in rows if row["name"] != ALL_LAYERS])
    panels = list(layers.groupby(["method", "mode", "local_steps"], sort=False))
    panels.sort(key=lambda panel: int(panel[0][2]))
    shares = sorted(layers["share"].unique())
    modes = layers.groupby("method")["mode"].nunique()
    figure, grid = new_figure(
        len(panels),
        columns=3,
        title="The federated update against the centralised one, and a client's own update with"
        " batch statistics against that with global ones",
        panel_height=1.6,
    )
    for ax, ((method, mode, steps), found) in zip(grid, panels, strict=True):
        means = found.pivot_table(index="depth", columns="share", values="cosine")
        means = means.reindex(columns=shares)  # the panels share their x axis
        image = ax.imshow(
            means, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest"
        )
        ax.set_xticks(range(len(shares)), [f"{100 * share:.0f}" for share in shares])
        plural = "s" if int(steps) > 1 else ""
        kind = OWN if mode == OWN else f"federated, {mode}"
        what = kind if modes[method] > 1 else "federated"
        ax.set_title(f"{method}: {what}, {steps} step{plural}", fontsize="x-small")
    label_axes(grid, "share of the rounds (%)", "layer")
    bar = figure.colorbar(image, ax=grid, location="bottom", aspect=40, shrink=0.7)
    bar.set_label("cosine of the two updates; layers from the input on")
    return figure


def updates_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the cosine over all layers in Markdown, a column for each share of the rounds.

    A number is the mean over the runs.
    """
    whole = pd.DataFrame([row for row in rows if row["name"] == ALL_LAYERS])
    shares = sorted(whole["share"].unique())
    lines = []
    for (method, mode, steps), found in whole.groupby(
        ["method", "mode", "local_steps"], sort=False
    ):
        means = found.groupby("share")["cosine"].mean()
        cells = [f"{means[share]:.2f}" if share in means else "" for share in shares]
        lines.append([str(method), str(mode), str(steps), *cells])
    headings = ["run", "normalised by", "local steps", *(f"{100 * s:.0f} %" for s in shares)]
    return markdown(headings, lines, len(shares))
