"""How far the update of a federated round is from the one that training in one place would make.

With one local step a round, plain SGD and equal batches, the mean of the clients' updates is the
step on the union of their batches, unless the model makes an image's gradient depend on the rest of
its batch. Batch normalisation does: the gradient deviation of the paper (arXiv 2303.06530,
section 3.2). With frozen statistics, as with group normalisation, it is gone, and what is left with
several local steps is the drift of clients that train on their own.
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
from fixbn_flwr.app.training import Workbench, augmented_batch, seed_of, train
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.batch_norm import freeze_statistics
from fixbn_flwr.tasks import Split, Task

ALL_LAYERS = "all layers"


@dataclass(frozen=True)
class LayerDifference:
    """The federated update of a layer beside the centralised one, the mean over all draws.

    Attributes:
        name: of the layer whose own parameters these are, weight and bias together, such as
            "blocks.0.conv1"; `ALL_LAYERS` for the model as a whole.
        depth: the layer's place in the order in which the model registers them, 0 for the first;
            in networks that are built as they compute, its place from the input. -1 for the whole.
        cosine: of the angle between the two updates; 0 when the federated one is zero, as the
            clients' may cancel out.
        norm_ratio: length of the federated update over that of the centralised one.
        distance: length of the difference between them over that of the centralised one.
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
    """Compare the federated with the centralised update at a given global model.

    Federated: every client takes plain SGD steps (no momentum, no weight decay) in train mode on
    batches of its own, all from the global model, and the plain mean of their updates counts, as
    all have trained on equally many images. Centralised: as many steps from the same model, the
    i-th on the union of all clients' i-th batches, which are augmented once and then shared.

    Cosine, ratio and distance are worked out in each draw of the batches by itself, and then
    averaged: means of ratios, not ratios of means. A layer whose centralised update is zero in some
    draw is left out.

    Steps are taken in the model's own type. Measure with a float64 copy (`model.double()`): float32
    rounds each step to the nearest weight, which looks like a distance of up to some percent. What
    dropout drops differs between clients and union, and so adds to the distance. On a task with
    masks so does averaging over pixels, of which a client's batch may count fewer than another's.

    Args:
        task: loss, normalisation and augmentation.
        data: the training images.
        partitions: indices into `data` of every client's images, int64 `[n]` each.
        model: the global model, with its statistics, on its device. It is left as it is, and so is
            torch's global generator.
        frozen: normalise with the global statistics instead of those of each mini-batch.
        local_steps: SGD steps of a client in a round.
        batch_size: images in a client's batch.
        learning_rate: of every step.
        draws: how many times batches are drawn, independently.
        seed: fixes every random choice.

    Returns:
        The layers in the order of their depth, then the whole model.

    Raises:
        ConfigError: a number is out of range, a client has no images, or an update is not finite.
        NoStatisticsError: `frozen`, but the model has no statistics.
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
            torch.manual_seed(seed_of(seed, draw, len(partitions)))  # dropout draws from it
            random = [
                torch.Generator().manual_seed(seed_of(seed, draw, client))
                for client in range(len(partitions))
            ]
            ready = _augmented(task, data, partitions, bench, random, local_steps, batch_size)
            # The places in `ready` of the images of each client's batches.
            batches = torch.arange(len(ready)).view(len(partitions), local_steps, batch_size)
            federated = _mean(_update(bench, model, task, ready, own) for own in batches)
            union = batches.transpose(0, 1).flatten(1)
            centralised = _update(bench, model, task, ready, union)
            if not (federated[ALL_LAYERS] + centralised[ALL_LAYERS]).isfinite().all():
                raise ConfigError(
                    f"After local_steps={local_steps} with learning_rate={learning_rate} the update"
                    " is not finite: choose a smaller rate, and a model that has not diverged"
                    " itself."
                )
            for name, update in centralised.items():
                # Nothing can be said relative to an update of zero: that of a parameter which is
                # not trained or gets no gradient, as most of a FixUp network's in the beginning.
                if update.any():
                    found.setdefault(name, []).append(_compare(federated[name], update))
    depths = {name: depth for depth, name in enumerate(_layers(model))} | {ALL_LAYERS: -1}
    return [
        LayerDifference(name, depth, *map(fmean, zip(*found[name], strict=True)))
        for name, depth in depths.items()
        if len(found.get(name, [])) == draws
    ]


def explained_share(batch: float, frozen: float, centralised: float) -> float:
    """The share of BN's loss of accuracy in a federation that frozen statistics make good.

    Args:
        batch: accuracy of the federation with the statistics of each mini-batch.
        frozen: accuracy of the federation with statistics frozen from T* on.
        centralised: accuracy of training in one place.

    Returns:
        0 when freezing changes nothing, 1 when it closes the gap; below 0 when it does harm, above
        1 when the federation becomes better than training in one place.

    Raises:
        ValueError: there is no gap to close.
    """
    if not centralised > batch:
        raise ValueError(
            f"centralised training has an accuracy of {centralised} and BN in the federation one of"
            f" {batch}: there is no gap of which frozen statistics could close a share"
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
            raise ConfigError(f"{name}={count}: nothing would be trained; choose 1 or more")
    if not 0 < learning_rate < math.inf:
        raise ConfigError(f"learning_rate={learning_rate}: choose a positive, finite one")
    sizes = [len(indices) for indices in partitions]
    if not sizes or 0 in sizes:
        raise ConfigError(
            f"partitions of {sizes} images: there must be a client, and an image in each; a client"
            " without images cannot train, so leave it out"
        )


def _augmented(
    task: Task,
    data: Split,
    partitions: Sequence[NDArray[np.int64]],
    bench: Workbench,
    random: Sequence[torch.Generator],
    local_steps: int,
    batch_size: int,
) -> Split:
    """Draw all clients' batches, and make their images what the model is to see of them.

    Returns:
        Client after client and step after step, images in the model's type.
    """
    dtype = next(bench.model.parameters()).dtype
    ready: list[tuple[Tensor, Tensor]] = []
    for indices, own in zip(partitions, random, strict=True):
        for batch in batches_by_steps(torch.from_numpy(indices), batch_size, local_steps, own):
            ready.append(augmented_batch(task, data, batch, bench.device, dtype, own))
    return Split(*(torch.cat(parts) for parts in zip(*ready, strict=True)))


def _update(
    bench: Workbench, model: nn.Module, task: Task, ready: Split, batches: Tensor
) -> dict[str, Tensor]:
    """Train from the global model on batches of ready images; return what was added to it.

    Args:
        bench: what to train with.
        model: the global model.
        task: whose loss to use.
        ready: the images.
        batches: places in `ready`, int64 `[steps, images]`.

    Returns:
        One float64 vector a layer, and one for all.
    """
    bench.model.load_state_dict(model.state_dict())  # the statistics as well
    channels = len(task.mean)
    # Normalised and augmented already, which must not be done again.
    as_it_is = replace(
        task, mean=(0.0,) * channels, std=(1.0,) * channels, augment=None, masks=None
    )
    train(bench, as_it_is, ready, iter(batches), torch.Generator())
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
    """The names of each layer's own parameters, by the layer's name."""
    layers: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        layers.setdefault(name.rpartition(".")[0] or type(model).__name__, []).append(name)
    return layers


def _mean(updates: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the clients' updates, of which only one is held at a time."""
    total: dict[str, Tensor] = {}
    for number, update in enumerate(updates, start=1):
        for name, value in update.items():
            total[name] = total[name] + value if number > 1 else value
    return {name: value / number for name, value in total.items()}


def _compare(federated: Tensor, centralised: Tensor) -> tuple[float, float, float]:
    """Cosine, ratio of the norms, and relative distance of two vectors, the second not zero."""
    length, reference = float(federated.norm()), float(centralised.norm())
    cosine = float(federated @ centralised) / (length * reference) if length else 0.0
    return cosine, length / reference, float((federated - centralised).norm()) / reference
