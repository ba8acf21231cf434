"""The local step: augmentation, forward and backward pass, and SGD on one batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fixbn_flwr.app.workbench import Workbench
from fixbn_flwr.tasks import Split, Task, normalise

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, eq=False)
class LocalStep:
    """One SGD step on a batch; the same function on a CPU, on a GPU and in a CUDA graph.

    Attributes:
        bench: The model and its optimizer.
        task: Gives the loss and the augmentation.
        data: The training images, on the model's device if they are in memory.
        random: The generator of the augmentation.
        precision: "bfloat16" runs the forward pass in autocast.
    """

    bench: Workbench
    task: Task
    data: Split
    random: torch.Generator
    precision: Precision

    def __call__(self, indices: Tensor) -> Tensor:
        """Take the step; return the loss before it, a scalar on the device.

        Args:
            indices: The batch, as indices into ``data``, int64 ``[n]``.
        """
        optimizer = self.bench.optimizer
        loss = batch_loss(self.bench, self.task, self.data, indices, self.random, self.precision)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return loss.detach()


def batch_loss(
    bench: Workbench,
    task: Task,
    data: Split,
    indices: Tensor,
    random: torch.Generator,
    precision: Precision = "float32",
) -> Tensor:
    """Return the loss of a batch, with its graph; see `LocalStep` for the arguments."""
    dtype = next(bench.model.parameters()).dtype
    images, targets = augmented_batch(task, data, indices, bench.device, dtype, random)
    images = images.contiguous(memory_format=torch.channels_last)
    with _arithmetic(precision, bench.device):
        return task.loss(bench.model(images), targets)


def augmented_batch(
    task: Task,
    data: Split,
    indices: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    random: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return normalised and augmented images, with their targets.

    Args:
        task: Gives the normalisation and the augmentation.
        data: The stored images.
        indices: The indices of the batch, int64 ``[n]``.
        device: The device of the result.
        dtype: The floating type of the images.
        random: The generator of the augmentation.
    """
    images = normalise(task, data.images[indices].to(device), dtype)
    targets = data.targets[indices].to(device)
    if task.masks is not None:
        return task.masks.augment(images, targets, random)
    if task.augment is not None:
        images = task.augment(images, random)
    return images, targets


def _arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
