"""Local training and evaluation in plain PyTorch, without Flower or FixBN.

Four things make it fast, and none changes the results of float32 training: all clients of a process
share the data set as one uint8 tensor (a large one stays in its files), batches are gathered and
augmented whole, the model uses channels-last memory, and a process builds its model and optimizer
once (see :mod:`fixbn_flwr.app.workbench`). On a GPU the data set stays there, and steps are
captured as CUDA graphs (see :mod:`fixbn_flwr.app.cuda_graphs`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fixbn_flwr.app.local_step import LocalStep, Precision
from fixbn_flwr.app.workbench import Workbench
from fixbn_flwr.tasks import Split, Task, normalise

EVALUATION_BATCH = 500  # images of at most 64x64 pixels; affects memory, not the result


def train(
    bench: Workbench,
    task: Task,
    data: Split,
    batches: Iterator[Tensor],
    random: torch.Generator,
    precision: Precision = "float32",
    around: Callable[[LocalStep], Callable[[Tensor], Tensor]] | None = None,
) -> float:
    """Take one SGD step per batch, and return the mean training loss.

    Args:
        bench: The model and its optimizer.
        task: Gives the loss and the augmentation.
        data: The training images.
        batches: The batches, each of indices into ``data``, int64 ``[n]``.
        random: The generator of the augmentation.
        precision: "bfloat16" runs the forward pass in autocast. Default: "float32".
        around: Returns what takes the steps, see ``cuda_graphs``. Default: the step itself.
    """
    bench.model.train()
    data = on_device(data, bench.device)
    step = LocalStep(bench, task, data, bench.random_of(random), precision)
    take = step if around is None else around(step)
    if bench.device.type != "cpu":
        batches = _moved(batches, bench.device)
    losses = [take(indices) for indices in batches]
    return float(torch.stack(losses).mean())


def _moved(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield the batches on a device, after one copy of them all."""
    listed = list(batches)
    yield from torch.split(torch.cat(listed).to(device), [len(batch) for batch in listed])


@lru_cache(maxsize=2)
def on_device(data: Split, device: torch.device) -> Split:
    """Return images and targets on a device, moved once per process; those in files stay there."""
    images, targets = (
        value.to(device) if isinstance(value, Tensor) else value
        for value in (data.images, data.targets)
    )
    there = images is data.images and targets is data.targets
    return data if there else Split(images, targets, data.groups)


@torch.inference_mode()
def evaluate(
    bench: Workbench, task: Task, data: Split, indices: Tensor | None = None
) -> tuple[float, float]:
    """Return the model's mean loss and metric in evaluation mode, in float32.

    Args:
        bench: The model.
        task: Gives the loss and the metric.
        data: The images.
        indices: The images to evaluate on, int64 ``[n]``. Default: all.
    """
    model = bench.model
    model.eval()
    data = on_device(data, bench.device)
    metric = task.metric().to(bench.device)
    total, examples = torch.zeros((), dtype=torch.float64, device=bench.device), 0
    for images, targets in _evaluation_batches(bench, task, data, indices):
        outputs = model(images.contiguous(memory_format=torch.channels_last))
        counted = len(targets) if task.masks is None else task.masks.counted(targets)
        total += task.loss(outputs, targets).double() * counted
        examples += counted
        metric.update(outputs, targets)
    loss = float(total) / examples if examples else math.nan  # no pixel of the masks counts
    return loss, float(metric.compute())


def _evaluation_batches(
    bench: Workbench, task: Task, data: Split, indices: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    dtype = next(bench.model.parameters()).dtype
    size = _evaluation_batch(data) if task.masks is None else task.masks.evaluation_batch
    for start in range(0, len(data) if indices is None else len(indices), size):
        chunk = slice(start, start + size)
        chosen = chunk if indices is None else indices[chunk]
        images = normalise(task, data.images[chosen].to(bench.device), dtype)
        targets = data.targets[chosen].to(bench.device)
        if task.masks is None:
            yield images, targets
        else:
            yield from task.masks.windows(images, targets)


def _evaluation_batch(data: Split) -> int:
    height, width = data.images[:1].shape[2:]
    return max(1, min(EVALUATION_BATCH, EVALUATION_BATCH * 64 * 64 // (height * width)))


def seed_of(*parts: int) -> int:
    """Return one seed for a random generator from several numbers (seed, round, partition)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
