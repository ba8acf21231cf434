"""How well a run's model does on each client's own images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fixbn_flwr.app.client.image_client import held_out_of, partitions_of
from fixbn_flwr.app.report.charts import NARROW
from fixbn_flwr.app.report.picture import Picture, picture_of
from fixbn_flwr.app.report.reported_run import ReportedRun
from fixbn_flwr.app.report.tables import Row, Table
from fixbn_flwr.app.report.tested_model import TestedModel
from fixbn_flwr.errors import ConfigError


@dataclass(frozen=True)
class ClientResult:
    """A model on one client's training images.

    Attributes:
        client: The number of the client's partition.
        images: The number of its images.
        score: The task's metric, in [0, 1].
        loss: The mean loss, in nats.
    """

    client: int
    images: int
    score: float
    loss: float


def client_results(run: ReportedRun, model: TestedModel) -> list[ClientResult]:
    """Return the result of each client, in the order of their partitions.

    Raises:
        ConfigError: If the clients train on their own data, which only they have.
    """
    if run.config.get("own_data", False):
        raise ConfigError("The clients trained on their own data, which is not on this machine.")
    results = []
    clients = int(run.config["clients"])
    for client, own in enumerate(partitions_of(model.settings, model.train, clients)):
        images, _ = held_out_of(model.settings, own, client)
        loss, score = model.evaluate(model.train, torch.from_numpy(images))
        results.append(ClientResult(client, len(images), score, loss))
    return results


def draw_clients(
    runs: Sequence[ReportedRun], results: Mapping[str, Sequence[ClientResult]]
) -> list[Picture]:
    """Draw the score and the loss of each client.

    Args:
        runs: All runs.
        results: The clients by the run's label; a run may be missing.
    """
    shown = [run for run in runs if run.label in results]
    scores = " or ".join(dict.fromkeys(run.score for run in shown))
    return [
        _draw(shown, f"{scores} (%)", {k: [100 * c.score for c in v] for k, v in results.items()}),
        _draw(shown, "loss (nats)", {k: [c.loss for c in v] for k, v in results.items()}),
    ]


def _draw(runs: Sequence[ReportedRun], name: str, values: Mapping[str, Sequence[float]]) -> Picture:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=NARROW, layout="constrained")
    ax = figure.subplots()
    parts = []
    for place, run in enumerate(runs):
        own = values[run.label]
        color, _, marker = run.style
        # Side by side, so that equal values do not hide each other.
        aside = 0.5 * (place - (len(runs) - 1) / 2) / len(runs)
        places = [client + aside for client in range(len(own))]
        ax.vlines(places, 0, own, color=color, linewidth=1.0, alpha=0.5)
        ax.plot(
            places, own, color=color, linestyle="", marker=marker, label=run.label, clip_on=False
        )
        low, middle, high = np.min(own), np.median(own), np.max(own)
        parts.append(f"{run.label}: {low:.4g} to {high:.4g}, median {middle:.4g}")
    known = [v for own in values.values() for v in own if math.isfinite(v)]
    ax.set(xlabel="client", ylabel=name, ylim=(0, 1.08 * max(known, default=0.0) or 1.0))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3, axis="y")
    ax.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        columns = 1 if max(len(run.label) for run in runs) > 24 else 2
        figure.legend(loc="outside lower center", ncols=columns, fontsize=9)
    return picture_of(figure, f"{name} by client. {'; '.join(parts)}.")


def client_table(results: Sequence[ClientResult], score: str) -> Table:
    """Return the results of a run's clients, the lowest score first."""
    return Table(
        ["client", "images", score, "loss"],
        [
            Row(str(c.client), [f"{c.images:,}", f"{c.score:.1%}", f"{c.loss:.3f}"])
            for c in sorted(results, key=lambda c: (c.score, -c.loss))
        ],
    )
