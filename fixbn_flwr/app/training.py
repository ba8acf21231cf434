"""Local training and evaluation in plain PyTorch: what a client does between receiving and sending.

Fast by four means, none of which changes the numbers that float32 training gives: the data set is
one uint8 tensor that all clients of a process share (or stays in its files, if it is too large),
batches are gathered and augmented whole, the model keeps channels-last memory, and model and
optimiser are built once a process (see :class:`Workbench`). Knows nothing of Flower or of FixBN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.tasks import Split, Task, normalise

EVALUATION_BATCH = 500  # images; the result does not depend on it, memory does


class Workbench:
    """A model and its SGD optimiser, used again and again by all clients of a process.

    Whoever takes it loads arrays, and sets learning rate and momentum buffers before training.

    Args:
        model: the model, on its device already.
        device: that device.
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
        """The optimiser; a process that only evaluates is spared torch's 4 s of imports for it."""
        return SGD(
            self.model.parameters(),
            lr=0.0,
            momentum=self._momentum,
            weight_decay=self._weight_decay,
        )

    def load(self, arrays: dict[str, Array]) -> None:
        """Load a whole state dict given as numpy arrays."""
        self.model.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})

    def arrays(self) -> dict[str, Array]:
        """Return the state dict as contiguous numpy arrays that later training leaves alone."""
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format).numpy()
            for name, tensor in self.model.state_dict().items()
        }

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of every parameter group."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate


@lru_cache(maxsize=1)
def workbench(
    task: Task, model: str, norm: str, momentum: float, weight_decay: float, device: str
) -> Workbench:
    """Build a workbench, or return the one that this process has already built.

    Args:
        task: the task whose model to build.
        model: a name among ``task.models``.
        norm: the normalisation's name, see :func:`fixbn_flwr.models.norm.normaliser`.
        momentum: SGD's momentum coefficient.
        weight_decay: SGD's L2 penalty.
        device: "auto" (CUDA where there is some, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        ConfigError: the device is not there.
    """
    place = find_device(device)
    # cuDNN tries its algorithms and takes the fastest, so bits differ from run to run on a GPU, as
    # they do with its atomic additions; on the CPU they do not.
    torch.backends.cudnn.benchmark = place.type == "cuda"
    network = task.models[model](norm).to(place).to(memory_format=torch.channels_last)
    return Workbench(network, place, momentum, weight_decay)


def find_device(name: str) -> torch.device:
    """Return the device called ``name``; "auto" is CUDA where there is some.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={name!r}: this machine has {torch.cuda.device_count()} CUDA devices that "
            'this process may use. Choose device="auto" or "cpu", or give simulated clients a '
            "share of a GPU (client-resources-num-gpus)."
        )
    return device


def batches_by_steps(
    indices: Tensor, size: int, steps: int, random: torch.Generator
) -> Iterator[Tensor]:
    """Draw ``steps`` batches of exactly ``size`` indices, going through all of them in turn.

    Every pass over the indices has a new random order; a batch may end one pass and begin the next.
    """
    passes = -(-steps * size // len(indices))
    order = torch.cat([torch.randperm(len(indices), generator=random) for _ in range(passes)])
    for step in range(steps):
        yield indices[order[step * size : (step + 1) * size]]


def batches_by_epochs(
    indices: Tensor, size: int, epochs: int, random: torch.Generator
) -> Iterator[Tensor]:
    """Go ``epochs`` times through all indices, each time in a new order, in nearly equal batches.

    The batches of an epoch are as equal as can be and no larger than ``size``: nothing is left out,
    and no batch of one or two images is left over, which batch normalisation could not bear.
    """
    for _ in range(epochs):
        order = torch.randperm(len(indices), generator=random)
        yield from indices[order].tensor_split(-(-len(indices) // size))


def train(
    bench: Workbench,
    task: Task,
    data: Split,
    batches: Iterator[Tensor],
    random: torch.Generator,
    precision: str = "float32",
) -> float:
    """Take one SGD step a batch of indices into ``data``, and return the mean training loss."""
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
    """Return images and targets as a model is shown them in training.

    Args:
        task: normalises and augments them.
        data: the stored images.
        indices: which of them, int64 ``[n]``.
        device: where to put them.
        dtype: the floating type of the images.
        random: what the augmentation draws from.
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
    """Return mean loss and metric of the model, with its global statistics, in float32.

    Args:
        bench: the model.
        task: gives loss and metric.
        data: the images.
        indices: which of them to evaluate on; None for all.
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
    """Mix whole numbers (seed, round, partition) into one seed for a random generator."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _arithmetic(precision: str, device: torch.device) -> AbstractContextManager[object]:
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
