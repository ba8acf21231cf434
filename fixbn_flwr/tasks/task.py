"""A task: everything that a federation trains on, as one object.

A task holds a data set, the models that fit it, the loss and the metric, so a new data set is one
new file beside `digits.py`, with one `Task` in it. Nothing here knows of Flower or of FixBN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchmetrics import Metric

    from fixbn_flwr.tasks.segmentation import Masks


class Stored(Protocol):
    """A tensor, or what gives one when indexed like it, such as `ImageFiles`."""

    def __len__(self) -> int:
        """How many images there are."""

    def __getitem__(self, indices: Tensor | slice, /) -> Tensor:
        """Those asked for, one row each."""


@dataclass(frozen=True, eq=False)
class Split:
    """The training or the test images, held once per process and shared by all its clients.

    Attributes:
        images: the stored pixels, uint8 `[n, channels, height, width]`.
        targets: the class of each image, int64 `[n]`, or of each pixel, uint8 `[n, height, width]`.
        groups: the natural client that each image comes from (its writer, hospital, city), int64
            `[n]`, any numbers; None when the data has no such thing.
    """

    images: Stored
    targets: Stored
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of each image, `[n]`; of images with masks, which have none, `[n, 0]`."""
        if isinstance(self.targets, Tensor) and self.targets.ndim == 1:
            labels: npt.NDArray[np.int64] = self.targets.numpy()
            return labels
        return np.empty((len(self), 0), dtype=np.int64)


# Compared and hashed by identity: there is one object a task, and a cache can be keyed by it.
@dataclass(frozen=True, eq=False)
class Task:
    """One data set with its models, loss and metric.

    Attributes:
        name: how users ask for the task, and how its run folders are called.
        classes: the number of classes; targets are `0 .. classes - 1`.
        load: reads `(train, test)` from a folder; None is the task's default folder. Call
            `load_splits` instead, which reads once per process.
        models: builders by name, each taking the normalisation's name (see `models/norm.py`) and
            drawing its weights from torch's global generator. The first is the default.
        mean: the training images' mean, one a channel, in units of the stored pixels.
        std: their standard deviation, likewise.
        augment: turns a whole normalised batch `[n, channels, height, width]` into another of the
            same shape, drawing from the generator; None for a task without augmentation.
        loss: `(outputs, targets)` to the mean over the batch, a scalar.
        metric: makes a fresh accuracy, in [0, 1], that is fed `(outputs, targets)`.
        masks: how images and masks are cut, for a task with a class for every pixel, which then
            leaves `augment` None; None for a task with a class for every image.
    """

    name: str
    classes: int
    load: Callable[[Path | None], tuple[Split, Split]]
    models: Mapping[str, Callable[[str], nn.Module]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Callable[[Tensor, torch.Generator], Tensor] | None
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[], Metric]
    masks: Masks | None = None


def normalise(task: Task, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Shift and scale stored pixels to mean 0 and standard deviation 1 in each channel.

    Args:
        task: the task that the images belong to.
        images: uint8 `[n, channels, height, width]`, on any device.
        dtype: the floating type of the result.

    Returns:
        `(images - mean) / std`, same shape, on the device of `images`.
    """
    shape = (len(task.mean), 1, 1)
    mean = torch.tensor(task.mean, dtype=dtype, device=images.device).view(shape)
    std = torch.tensor(task.std, dtype=dtype, device=images.device).view(shape)
    return (images.to(dtype) - mean) / std


def accuracy(classes: int) -> Metric:
    """A fresh top-1 accuracy in [0, 1] over `classes` classes."""
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(num_classes=classes, average="micro")
