"""Weights of the classes in the training loss, so that a rare class counts as much as another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor

from fixbn_flwr.tasks import Split, Task

ClassWeights = Literal["none", "balanced"]

_CHUNK = 64  # masks counted together


def weighted_task(task: Task, data: Split, weights: ClassWeights, device: torch.device) -> Task:
    """Return a task with its loss weighted by class.

    Args:
        task: The task.
        data: The training images of this process, which the weights are computed from.
        weights: "none" returns the task itself.
        device: The device of the targets.
    """
    return task if weights == "none" else _balanced_task(task, data, device)


@lru_cache(maxsize=2)  # CUDA graphs are kept by task
def _balanced_task(task: Task, data: Split, device: torch.device) -> Task:
    weight = balanced_weights(data, task.classes).to(device)
    loss: Callable[..., Tensor] = task.loss  # with an argument `weight`, or the config is refused
    return replace(task, loss=partial(loss, weight=weight))


def balanced_weights(data: Split, classes: int) -> Tensor:
    """Return a weight for each class: the mean size of a class divided by its own size.

    So the mean weight of the images, or pixels, is 1. These are the weights of scikit-learn's
    `class_weight="balanced"`, where all classes occur.

    Args:
        data: The training images.
        classes: The number of classes.

    Returns:
        float32 `[classes]`, with 0 for a class that does not occur.

    Examples:
        >>> targets = torch.tensor([0, 0, 0, 2])
        >>> balanced_weights(Split(torch.zeros(4, 1, 1, 1), targets), 3)
        tensor([0.6667, 0.0000, 2.0000])
    """
    counts = torch.zeros(classes, dtype=torch.int64)
    for start in range(0, len(data), _CHUNK):
        targets = data.targets[start : start + _CHUNK].flatten()
        counts += targets[targets < classes].long().bincount(minlength=classes)  # 255 is no class
    occurs = counts > 0
    weights = counts.sum() / (occurs.sum().clamp(min=1) * counts.clamp(min=1))
    return torch.where(occurs, weights, 0.0).float()
