"""Compare the update of a federated round with the update of centralized training.

With one local step per round, plain SGD and batches of equal size, the mean of the clients' updates
equals the step on the union of their batches, unless the gradient of an image depends on the rest
of its batch. With batch normalization it does; this is the gradient deviation of the paper (arXiv
2303.06530, section 3.2). With frozen statistics or group normalization it does not, and only the
drift of clients over several local steps remains.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fixbn_flwr.app.batches import batches_by_steps
from fixbn_flwr.app.local_step import augmented_batch
from fixbn_flwr.app.training import seed_of, train
from fixbn_flwr.app.workbench import Workbench
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.batch_norm import freeze_statistics
from fixbn_flwr.tasks import Split, Task

ALL_LAYERS = "all layers"


@dataclass(frozen=True)
class LayerDifference:
    """The difference between a layer's federated and centralized update, the mean over draws.

    Attributes:
        name: The layer, such as "blocks.0.conv1", with its weight and bias; `ALL_LAYERS` for the
            whole model.
        depth: The layer's index in order of registration, from 0; -1 for the whole model.
        cosine: The cosine of the angle between the two updates; 0 if the federated one is zero.
        norm_ratio: The norm of the federated update, relative to the centralized one.
        distance: The norm of the difference, relative to the norm of the centralized update.
    """

    name: str
    depth: int
    cosine: float
    norm_ratio: float
    distance: float


def measure(
    task: Task,
    data: Split,
    partitions: Sequence[NDArray[np.int64]],
    model: nn.Module,
    *,
    frozen: bool,
    local_steps: int,
    batch_size: int,
    learning_rate: float,
    draws: int,
    seed: int,
) -> list[LayerDifference]:
    """Compare the federated with the centralized update at a global model.

    The federated update is the mean over clients, each of which takes plain SGD steps (no momentum,
    no weight decay) in train mode on its own batches. The centralized update takes as many steps
    from the same model, the i-th on the union of all clients' i-th batches. Both use the same
    augmented images. Cosine, ratio and distance are means over the draws of batches. A layer whose
    centralized update is zero in a draw is omitted.

    Use a float64 model (`model.double()`): the rounding of float32 adds a distance of up to a few
    percent. Dropout and, on tasks with masks, the different numbers of pixels per batch also add to
    the distance.

    Args:
        task: The loss, normalization and augmentation.
        data: The training images.
        partitions: The indices of each client's images in `data`, int64 `[n]` each.
        model: The global model, with its statistics. Neither it nor torch's global random
            generator changes.
        frozen: Whether to normalize with the global statistics instead of those of each batch.
        local_steps: The number of SGD steps of a client.
        batch_size: The number of images in a client's batch.
        learning_rate: The learning rate of each step.
        draws: The number of independent draws of batches.
        seed: The seed of all random choices.

    Returns:
        The layers by depth, then the whole model.

    Raises:
        ConfigError: If a number is out of range, a client has no images, or an update diverges.
        NoStatisticsError: If `frozen` is set and the model has no statistics.
    """
    _check(partitions, local_steps, batch_size, learning_rate, draws)
    copied = copy.deepcopy(model)
    device = next(copied.parameters()).device
    bench = Workbench(copied, device, momentum=0.0, weight_decay=0.0)
    bench.set_learning_rate(learning_rate)
    found: dict[str, list[tuple[float, float, float]]] = {}
    with (
        freeze_statistics(copied) if frozen else nullcontext(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        for draw in range(draws):
            torch.manual_seed(seed_of(seed, draw, len(partitions)))  # for dropout
            random = [
                torch.Generator().manual_seed(seed_of(seed, draw, client))
                for client in range(len(partitions))
            ]
            ready = _augmented(task, data, partitions, bench, random, local_steps, batch_size)
            # Indices into `ready` of each client's batches.
            batches = torch.arange(len(ready)).view(len(partitions), local_steps, batch_size)
            federated = _mean(_update(bench, model, task, ready, own) for own in batches)
            union = batches.transpose(0, 1).flatten(1)
            centralised = _update(bench, model, task, ready, union)
            if not (federated[ALL_LAYERS] + centralised[ALL_LAYERS]).isfinite().all():
                raise ConfigError(
                    f"local_steps={local_steps} with learning_rate={learning_rate}: the update is"
                    " not finite; choose a smaller learning rate or a model that has not diverged"
                )
            for name, update in centralised.items():
                # Parameters may get no gradient, as in an initial FixUp network.
                if update.any():
                    found.setdefault(name, []).append(_compare(federated[name], update))
    depths = {name: depth for depth, name in enumerate(_layers(model))} | {ALL_LAYERS: -1}
    return [
        LayerDifference(name, depth, *map(fmean, zip(*found[name], strict=True)))
        for name, depth in depths.items()
        if len(found.get(name, [])) == draws
    ]


def explained_share(batch: float, frozen: float, centralised: float) -> float:
    """Return the share of the gap between BN and centralized training that freezing closes.

    Args:
        batch: The federated accuracy with batch statistics.
        frozen: The federated accuracy with statistics frozen after T*.
        centralised: The accuracy of centralized training.

    Returns:
        0 if freezing changes nothing, 1 if it closes the gap.

    Raises:
        ValueError: If there is no gap.
    """
    if not centralised > batch:
        raise ValueError(
            f"centralized training has an accuracy of {centralised} and federated BN of {batch}:"
            " there is no gap to close"
        )
    return (frozen - batch) / (centralised - batch)


def _check(
    partitions: Sequence[NDArray[np.int64]],
    local_steps: int,
    batch_size: int,
    learning_rate: float,
    draws: int,
) -> None:
    counts = {"local_steps": local_steps, "batch_size": batch_size, "draws": draws}
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name}={count} trains nothing: choose 1 or more")
    if not 0 < learning_rate < math.inf:
        raise ConfigError(f"learning_rate={learning_rate}: choose a positive, finite number")
    sizes = [len(indices) for indices in partitions]
    if not sizes or 0 in sizes:
        raise ConfigError(f"partitions of {sizes} images: give each client at least one image")


def _augmented(
    task: Task,
    data: Split,
    partitions: Sequence[NDArray[np.int64]],
    bench: Workbench,
    random: Sequence[torch.Generator],
    local_steps: int,
    batch_size: int,
) -> Split:
    """Return the augmented batches by client and step, in the model's dtype."""
    dtype = next(bench.model.parameters()).dtype
    ready: list[tuple[Tensor, Tensor]] = []
    for indices, own in zip(partitions, random, strict=True):
        for batch in batches_by_steps(torch.from_numpy(indices), batch_size, local_steps, own):
            ready.append(augmented_batch(task, data, batch, bench.device, dtype, own))
    return Split(*(torch.cat(parts) for parts in zip(*ready, strict=True)))


def _update(
    bench: Workbench, model: nn.Module, task: Task, ready: Split, batches: Tensor
) -> dict[str, Tensor]:
    """Train the global model on augmented images, and return its update.

    Args:
        bench: The model and optimizer to train with.
        model: The global model.
        task: The task, for its loss.
        ready: The augmented images.
        batches: Indices into `ready`, int64 `[steps, images]`.

    Returns:
        A float64 vector per layer, and one for the whole model.
    """
    bench.model.load_state_dict(model.state_dict())  # the statistics as well
    channels = len(task.mean)
    # The images are already normalized and augmented.
    plain = replace(task, mean=(0.0,) * channels, std=(1.0,) * channels, augment=None, masks=None)
    train(bench, plain, ready, iter(batches), torch.Generator())
    before = dict(model.named_parameters())
    added = {
        name: (after.detach().double() - before[name].detach().double()).flatten()
        for name, after in bench.model.named_parameters()
    }
    layers = {
        layer: torch.cat([added[name] for name in names]) for layer, names in _layers(model).items()
    }
    return {**layers, ALL_LAYERS: torch.cat(list(layers.values()))}


def _layers(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of each layer's own parameters, by the layer's name."""
    layers: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        layers.setdefault(name.rpartition(".")[0] or type(model).__name__, []).append(name)
    return layers


def _mean(updates: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of the clients' updates; only one is in memory at a time."""
    total: dict[str, Tensor] = {}
    for number, update in enumerate(updates, start=1):
        for name, value in update.items():
            total[name] = total[name] + value if number > 1 else value
    return {name: value / number for name, value in total.items()}


def _compare(federated: Tensor, centralised: Tensor) -> tuple[float, float, float]:
    """Return cosine, norm ratio and relative distance of two vectors; the second is not zero."""
    length, reference = float(federated.norm()), float(centralised.norm())
    cosine = float(federated @ centralised) / (length * reference) if length else 0.0
    return cosine, length / reference, float((federated - centralised).norm()) / reference
