"""Local training and evaluation in plain PyTorch, without Flower or FixBN.

Four things make it fast, and none changes the results of float32 training: all clients of a process
share the data set as one uint8 tensor (a large one stays in its files), batches are gathered and
augmented whole, the model uses channels-last memory, and a process builds its model and optimizer
once (see :class:`Workbench`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.tasks import Split, Task, normalise

EVALUATION_BATCH = 500  # images; affects memory, not the result

Precision = Literal["float32", "bfloat16"]


class Workbench:
    """A model and its SGD optimizer, shared by all clients of a process.

    Load arrays, and set the learning rate and the momentum buffers, before each training.

    Args:
        model: The model, on its device.
        device: The model's device.
        momentum: SGD's momentum coefficient.
        weight_decay: SGD's L2 penalty.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, momentum: float, weight_decay: float
    ) -> None:
        self.model = model
        self.device = device
        self._momentum = momentum
        self._weight_decay = weight_decay

    @cached_property
    def optimizer(self) -> SGD:
        """The optimizer, made on first use: its imports take 4 s, which evaluation can save."""
        return SGD(
            self.model.parameters(),
            lr=0.0,
            momentum=self._momentum,
            weight_decay=self._weight_decay,
        )

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        """The model's state dict. Its tensors are the model's own."""
        return dict(self.model.state_dict())

    @torch.no_grad()
    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy a whole state dict of numpy arrays into the model.

        Raises:
            RuntimeError: If a name or a shape differs from the model's.
        """
        if arrays.keys() != self._state.keys():
            differing = sorted(arrays.keys() ^ self._state.keys())
            raise RuntimeError(f"these arrays are not the model's: {', '.join(differing)}")
        for name, tensor in self._state.items():
            if arrays[name].shape != tensor.shape:
                raise RuntimeError(
                    f"{name} has the shape {arrays[name].shape}, not {tuple(tensor.shape)}"
                )
            tensor.copy_(torch.from_numpy(arrays[name]))

    def arrays(self) -> dict[str, Array]:
        """Return a copy of the state dict as contiguous numpy arrays."""
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format).numpy()
            for name, tensor in self._state.items()
        }

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of every parameter group."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate


@lru_cache(maxsize=1)
def workbench(
    task: Task, model: str, norm: str, momentum: float, weight_decay: float, device: str
) -> Workbench:
    """Build a workbench, or return the process's last one if the arguments are the same.

    Args:
        task: The task of the model.
        model: A name in ``task.models``.
        norm: The name of the normalization, see :func:`fixbn_flwr.models.norm.normaliser`.
        momentum: SGD's momentum coefficient.
        weight_decay: SGD's L2 penalty.
        device: "auto" (CUDA if available, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: If this machine has no such device.
    """
    place = find_device(device)
    # cuDNN chooses the fastest algorithm by trial. On a GPU, bits differ from run to run anyway,
    # because of atomic additions.
    torch.backends.cudnn.benchmark = place.type == "cuda"
    network = task.models[model](norm).to(place).to(memory_format=torch.channels_last)
    return Workbench(network, place, momentum, weight_decay)


def find_device(name: str) -> torch.device:
    """Return the device with this name; "auto" is CUDA if available, else the CPU.

    Raises:
        ConfigError: If this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={name!r}: this machine has {torch.cuda.device_count()} CUDA devices that "
            'this process can use. Choose device="auto" or "cpu", or give simulated clients a '
            "share of a GPU (client-resources-num-gpus)."
        )
    return device


def train(
    bench: Workbench,
    task: Task,
    data: Split,
    batches: Iterator[Tensor],
    random: torch.Generator,
    precision: Precision = "float32",
) -> float:
    """Take one SGD step per batch, and return the mean training loss.

    Args:
        bench: The model and its optimizer.
        task: Gives the loss and the augmentation.
        data: The training images.
        batches: The batches, each of indices into ``data``, int64 ``[n]``.
        random: The generator of the augmentation.
        precision: "bfloat16" runs the forward pass in autocast. Default: "float32".
    """
    model, optimizer = bench.model, bench.optimizer
    model.train()
    dtype = next(model.parameters()).dtype
    losses: list[Tensor] = []
    for indices in batches:
        images, targets = augmented_batch(task, data, indices, bench.device, dtype, random)
        images = images.contiguous(memory_format=torch.channels_last)
        with _arithmetic(precision, bench.device):
            loss = task.loss(model(images), targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def augmented_batch(
    task: Task,
    data: Split,
    indices: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    random: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return normalized and augmented images, with their targets.

    Args:
        task: Gives the normalization and the augmentation.
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
    metric = task.metric().to(bench.device)
    total, examples = 0.0, 0
    for images, targets in _evaluation_batches(bench, task, data, indices):
        outputs = model(images.contiguous(memory_format=torch.channels_last))
        counted = len(targets) if task.masks is None else task.masks.counted(targets)
        total += float(task.loss(outputs, targets)) * counted
        examples += counted
        metric.update(outputs, targets)
    return total / examples, float(metric.compute())


def _evaluation_batches(
    bench: Workbench, task: Task, data: Split, indices: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    dtype = next(bench.model.parameters()).dtype
    size = EVALUATION_BATCH if task.masks is None else task.masks.evaluation_batch
    for start in range(0, len(data) if indices is None else len(indices), size):
        chunk = slice(start, start + size)
        chosen = chunk if indices is None else indices[chunk]
        images = normalise(task, data.images[chosen].to(bench.device), dtype)
        targets = data.targets[chosen].to(bench.device)
        if task.masks is None:
            yield images, targets
        else:
            yield from task.masks.windows(images, targets)


def seed_of(*parts: int) -> int:
    """Return one seed for a random generator from several numbers (seed, round, partition)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
