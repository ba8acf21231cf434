"""Accuracy and mean intersection over union, both in [0, 1].

They are torchmetrics' ``MulticlassAccuracy`` and ``MulticlassJaccardIndex``, which tests compare
with; importing that package takes longer than a small run. A task may use any metric of
torchmetrics.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor


class Metric(Protocol):
    """What ``Task.metric`` returns, such as a metric of torchmetrics."""

    def to(self, device: torch.device) -> Any:
        """Return the metric, on a device."""

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch."""

    def compute(self) -> Tensor:
        """Return the value for all batches so far."""


class Accuracy:
    """The share of images whose largest output is that of their class.

    Examples:
        >>> metric = Accuracy()
        >>> metric.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(self) -> None:
        self._right = torch.zeros((), dtype=torch.int64)
        self._all = 0

    def to(self, device: torch.device) -> Accuracy:
        """Move the count to a device, so that an update does not wait for it."""
        self._right = self._right.to(device)
        return self

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add logits `[n, classes]` and classes `[n]`."""
        self._right += (outputs.argmax(1) == targets).sum()
        self._all += len(targets)

    def compute(self) -> Tensor:
        """Return the accuracy, a float32 scalar."""
        return self._right.float() / self._all


class MeanIoU:
    """The mean intersection over union of the classes that occur in masks or outputs.

    Args:
        classes: The number of classes.
        ignored: The mask value of pixels that do not count.
    """

    def __init__(self, classes: int, ignored: int) -> None:
        self._classes = classes
        self._ignored = ignored
        self._confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def to(self, device: torch.device) -> MeanIoU:
        """Move the confusion matrix to a device."""
        self._confusion = self._confusion.to(device)
        return self

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add logits `[n, classes, h, w]` and masks `[n, h, w]`."""
        counted = targets != self._ignored
        pairs = targets[counted].long() * self._classes + outputs.argmax(1)[counted]
        self._confusion += pairs.bincount(minlength=self._classes**2).view(self._confusion.shape)

    def compute(self) -> Tensor:
        """Return the mean, a float32 scalar; 0 without any class."""
        shared = self._confusion.diagonal().float()
        either = (self._confusion.sum(0) + self._confusion.sum(1)).float() - shared
        occurs = either > 0
        return (shared[occurs] / either[occurs]).sum() / occurs.sum().clamp(min=1)
