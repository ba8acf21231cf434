"""Which classes a run's model confuses, on the test data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fixbn_flwr.app.report.tables import Row, Table
from fixbn_flwr.app.report.tested_model import TestedModel

_LISTED = 10  # confusions in the table


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        counts: How many images (pixels, for a segmentation) of each class, in rows, the model gives
            each class, in columns.
        class_names: The name of each class.
    """

    counts: NDArray[np.int64]
    class_names: Sequence[str]

    @property
    def shares(self) -> NDArray[np.float64]:
        """Each row divided by its sum; NaN for a class that does not occur."""
        totals = self.counts.sum(axis=1, keepdims=True)
        shares = np.full(self.counts.shape, np.nan)
        np.divide(self.counts, totals, out=shares, where=totals > 0)
        return shares


class _Counts:
    """A metric that counts what the model says to each class; its value is not used."""

    def __init__(self, classes: int) -> None:
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def to(self, device: torch.device) -> _Counts:
        self.counts = self.counts.to(device)
        return self

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        classes = len(self.counts)
        counted = targets < classes  # other values of a mask mean no class
        pairs = targets[counted].long() * classes + outputs.argmax(1)[counted]
        self.counts += pairs.bincount(minlength=classes**2).view(classes, classes)

    def compute(self) -> Tensor:
        return torch.zeros(())


def confusion_of(model: TestedModel) -> Confusion:
    """Return the confusion matrix of a model on its test data."""
    metric = _Counts(model.task.classes)
    model.evaluate(model.test, metric=metric)
    return Confusion(metric.counts.cpu().numpy(), model.class_names)


def worst_confusions(confusion: Confusion) -> Table:
    """Return the most frequent confusions, by their share of the true class."""
    shares = np.nan_to_num(confusion.shares)
    np.fill_diagonal(shares, 0.0)
    table = Table(["true class", "predicted", "number", "share of the true class"])
    for place in np.argsort(-shares, axis=None, kind="stable")[:_LISTED]:
        row, column = np.unravel_index(place, shares.shape)
        if shares[row, column] > 0:
            names = confusion.class_names
            cells = [names[column], f"{confusion.counts[row, column]:,}"]
            table.rows.append(Row(names[row], [*cells, f"{shares[row, column]:.1%}"]))
    return table
