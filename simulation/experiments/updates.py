"""The update of a client, or of centralised training, from a global model."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

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

Update = dict[str, Tensor]
"""A float64 vector per layer, and one for the whole model, `ALL_LAYERS`."""


@dataclass(frozen=True)
class Trial:
    """Local training of all clients from one global model, with plain SGD.

    Use a float64 model (`model.double()`): the rounding of float32 adds a distance of up to a few
    percent.

    Attributes:
        task: The loss, normalisation and augmentation.
        data: The training images.
        partitions: The indices of each client's images in `data`, int64 `[n]` each.
        model: The global model, with its statistics. Neither it nor torch's global random
            generator changes.
        local_steps: The number of SGD steps of a client.
        batch_size: The number of images in a client's batch.
        learning_rate: The learning rate of each step.
        draws: The number of independent draws of batches.
        seed: The seed of all random choices.

    Raises:
        ConfigError: If a number is out of range, or a client has no images.
    """

    task: Task
    data: Split
    partitions: Sequence[NDArray[np.int64]]
    model: nn.Module
    local_steps: int
    batch_size: int
    learning_rate: float
    draws: int
    seed: int

    def __post_init__(self) -> None:
        counts = {
            "local_steps": self.local_steps, "batch_size": self.batch_size, "draws": self.draws,
        }  # fmt: skip
        for name, count in counts.items():
            if count < 1:
                raise ConfigError(f"{name}={count} trains nothing: choose 1 or more")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"learning_rate={self.learning_rate}: choose a positive, finite number"
            )
        sizes = [len(indices) for indices in self.partitions]
        if not sizes or 0 in sizes:
            raise ConfigError(f"partitions of {sizes} images: give each client at least one image")


class Draw:
    """One draw of batches.

    Attributes:
        clients: Indices into the drawn images of each client's batches, int64
            `[clients, steps, images]`.
        union: The same of the union of all clients' batches in each step, int64 `[steps, images]`.
    """

    def __init__(self, trial: Trial, bench: Workbench, number: int) -> None:
        self._trial, self._bench = trial, bench
        self._seed = seed_of(trial.seed, number, len(trial.partitions))
        random = [
            torch.Generator().manual_seed(seed_of(trial.seed, number, client))
            for client in range(len(trial.partitions))
        ]
        self._images = _augmented(trial, bench, random)
        shape = len(trial.partitions), trial.local_steps, trial.batch_size
        self.clients = torch.arange(len(self._images)).view(shape)
        self.union = self.clients.transpose(0, 1).flatten(1)

    def update(self, batches: Tensor, *, frozen: bool) -> Update:
        """Train the global model, and return its update.

        Args:
            batches: Indices into the drawn images, int64 `[steps, images]`.
            frozen: Whether to normalise with the global statistics instead of those of each batch.

        Raises:
            ConfigError: If the update is not finite.
            NoStatisticsError: If `frozen` is set and the model has no statistics.
        """
        trial, model = self._trial, self._bench.model
        model.load_state_dict(trial.model.state_dict())  # the statistics as well
        channels = len(trial.task.mean)
        # The images are already normalised and augmented.
        plain = replace(
            trial.task, mean=(0.0,) * channels, std=(1.0,) * channels, augment=None, masks=None
        )
        with freeze_statistics(model) if frozen else nullcontext():
            train(self._bench, plain, self._images, iter(batches), torch.Generator())
        before = dict(trial.model.named_parameters())
        added = {
            name: (after.detach().double() - before[name].detach().double()).flatten()
            for name, after in model.named_parameters()
        }
        layers = {
            layer: torch.cat([added[name] for name in names])
            for layer, names in layers_of(model).items()
        }
        update = {**layers, ALL_LAYERS: torch.cat(list(layers.values()))}
        if not update[ALL_LAYERS].isfinite().all():
            raise ConfigError(
                f"local_steps={trial.local_steps} with learning_rate={trial.learning_rate}: the"
                " update is not finite; choose a smaller learning rate or a model that has not"
                " diverged"
            )
        return update

    def restart_dropout(self) -> None:
        """Make dropout draw again what it drew first."""
        torch.manual_seed(self._seed)


def draws_of(trial: Trial) -> Iterator[Draw]:
    """Yield each draw of batches of a trial."""
    copied = copy.deepcopy(trial.model)
    device = next(copied.parameters()).device
    bench = Workbench(copied, device, momentum=0.0, weight_decay=0.0)
    bench.set_learning_rate(trial.learning_rate)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for number in range(trial.draws):
            draw = Draw(trial, bench, number)
            draw.restart_dropout()
            yield draw


def layers_of(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of each layer's own parameters, by the layer's name."""
    layers: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        layers.setdefault(name.rpartition(".")[0] or type(model).__name__, []).append(name)
    return layers


def mean_of(updates: Iterable[Update]) -> Update:
    """Return the mean of the clients' updates; only one is in memory at a time."""
    total: Update = {}
    for number, update in enumerate(updates, start=1):
        for name, value in update.items():
            total[name] = total[name] + value if number > 1 else value
    return {name: value / number for name, value in total.items()}


def _augmented(trial: Trial, bench: Workbench, random: Sequence[torch.Generator]) -> Split:
    """Return the augmented batches by client and step, in the model's dtype."""
    dtype = next(bench.model.parameters()).dtype
    ready: list[tuple[Tensor, Tensor]] = []
    for indices, own in zip(trial.partitions, random, strict=True):
        chosen = torch.from_numpy(indices)
        for batch in batches_by_steps(chosen, trial.batch_size, trial.local_steps, own):
            ready.append(augmented_batch(trial.task, trial.data, batch, bench.device, dtype, own))
    return Split(*(torch.cat(parts) for parts in zip(*ready, strict=True)))
