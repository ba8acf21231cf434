"""A task: a data set with its models, loss and metric, as one object.

A new data set is one new file beside `digits.py` that defines one `Task`, and its name in
`fixbn_flwr.tasks.TASKS`. This module depends on neither Flower nor FixBN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fixbn_flwr.tasks.metrics import Metric

if TYPE_CHECKING:
    from fixbn_flwr.tasks.segmentation import Masks


class Stored(Protocol):
    """A tensor, or a sequence that returns tensors when indexed like one, such as `ImageFiles`."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, indices: Tensor | slice, /) -> Tensor:
        """Return the images at these indices, one row each."""


@dataclass(frozen=True, eq=False)
class Split:
    """Training or test images. All clients of a process share one object.

    Attributes:
        images: The stored pixels, uint8 `[n, channels, height, width]`.
        targets: The class of each image, int64 `[n]`, or of each pixel, uint8 `[n, height, width]`.
        groups: The natural client of each image, such as its writer, hospital or city: any int64
            numbers, `[n]`. None if the data has no natural clients.
    """

    images: Stored
    targets: Stored
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of each image, `[n]`; an empty array `[n, 0]` for images with masks."""
        if isinstance(self.targets, Tensor) and self.targets.ndim == 1:
            labels: npt.NDArray[np.int64] = self.targets.numpy()
            return labels
        return np.empty((len(self), 0), dtype=np.int64)


# Compared and hashed by identity, so that it can be the key of a cache.
@dataclass(frozen=True, eq=False)
class Task:
    """A data set with its models, loss and metric.

    Attributes:
        name: The name of the task. Run folders are named after it.
        classes: The number of classes. Targets are `0 .. classes - 1`.
        load: Reads `(train, test)` from a folder, or from the default folder for None. Call
            `load_splits` instead, which reads once per process.
        models: Model builders by name. Each takes the name of a normalisation (see
            `models/norm.py`) and draws weights from torch's global generator. The first is the
            default.
        mean: The mean of the training images, per channel, in units of the stored pixels.
        std: Their standard deviation, per channel, in the same units.
        augment: Maps a normalised batch `[n, channels, height, width]` to one of the same shape,
            using the generator. None for no augmentation.
        loss: Maps `(outputs, targets)` to the mean loss of the batch, a scalar.
        metric: Creates a metric in [0, 1], which is updated with `(outputs, targets)`.
        masks: How to cut images and masks, for a segmentation task, whose `augment` is None. None
            for a classification task.
        class_names: The name of each class, for predictions. Default: the numbers of the classes.
        white: The largest value of a stored pixel, which is white. Default: 255.
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
    class_names: tuple[str, ...] = ()
    white: int = 255


def normalise(task: Task, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise stored pixels to mean 0 and standard deviation 1 per channel.

    Args:
        task: The task of the images.
        images: uint8 `[n, channels, height, width]`, on any device.
        dtype: The floating-point type of the result.

    Returns:
        `(images - mean) / std`, with the same shape and device as `images`.
    """
    mean, std = _mean_and_std(task, dtype, images.device)
    return (images.to(dtype) - mean) / std


@lru_cache(maxsize=8)  # a CUDA graph cannot copy them from the CPU
def _mean_and_std(task: Task, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (len(task.mean), 1, 1)
    mean, std = (torch.tensor(v, dtype=dtype, device=device) for v in (task.mean, task.std))
    return mean.view(shape), std.view(shape)
