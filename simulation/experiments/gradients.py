"""Compare updates from a global model, layer by layer.

With one local step per round, plain SGD and batches of equal size, the mean of the clients' updates
equals the step on the union of their batches, unless the gradient of an image depends on the rest
of its batch. With batch normalization it does; this is the gradient deviation of the paper (arXiv
2303.06530, section 3.2). With frozen statistics or group normalization it does not, and only the
drift of clients over several local steps remains.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from torch import Tensor

from simulation.experiments.updates import (
    ALL_LAYERS,
    Trial,
    Update,
    draws_of,
    layers_of,
    mean_of,
)


@dataclass(frozen=True)
class LayerDifference:
    """The difference between an update of a layer and a reference, the mean over draws.

    Attributes:
        name: The layer, such as "blocks.0.conv1", with its weight and bias; `ALL_LAYERS` for the
            whole model.
        depth: The layer's index in order of registration, from 0; -1 for the whole model.
        cosine: The cosine of the angle between the two updates; 0 if the first is zero.
        norm_ratio: The norm of the update, relative to that of the reference.
        distance: The norm of the difference, relative to the norm of the reference.
    """

    name: str
    depth: int
    cosine: float
    norm_ratio: float
    distance: float


def federated_against_centralised(trial: Trial, *, frozen: bool) -> list[LayerDifference]:
    """Compare the federated update with the centralised one.

    The federated update is the mean over clients, each of which takes plain SGD steps (no momentum,
    no weight decay) in train mode on its own batches. The centralised update takes as many steps
    from the same model, the i-th on the union of all clients' i-th batches. Both use the same
    augmented images. Dropout and, on tasks with masks, the different numbers of pixels per batch
    also add to the distance. A layer whose centralised update is zero in a draw is omitted.

    Args:
        trial: The model, the clients and their steps.
        frozen: Whether both normalise with the global statistics instead of those of each batch.

    Returns:
        The layers by depth, then the whole model.

    Raises:
        ConfigError: If an update diverges.
        NoStatisticsError: If `frozen` is set and the model has no statistics.
    """

    def pairs() -> Iterable[tuple[Update, Update]]:
        for draw in draws_of(trial):
            federated = mean_of(draw.update(own, frozen=frozen) for own in draw.clients)
            yield federated, draw.update(draw.union, frozen=frozen)

    return _differences(trial, pairs(), trial.draws)


def batch_against_global_statistics(trial: Trial) -> list[LayerDifference]:
    """Compare each client's update with its own batch statistics and with the global ones.

    Returns:
        The layers by depth, then the whole model: the mean over clients and draws.

    Raises:
        ConfigError: If an update diverges.
        NoStatisticsError: If the model has no statistics.
    """

    def pairs() -> Iterable[tuple[Update, Update]]:
        for draw in draws_of(trial):
            for own in draw.clients:
                draw.restart_dropout()
                batch = draw.update(own, frozen=False)
                draw.restart_dropout()
                yield batch, draw.update(own, frozen=True)

    return _differences(trial, pairs(), trial.draws * len(trial.partitions))


def _differences(
    trial: Trial, pairs: Iterable[tuple[Update, Update]], number: int
) -> list[LayerDifference]:
    """Return the mean difference of the pairs of update and reference, by layer."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for update, reference in pairs:
        for name, expected in reference.items():
            # Parameters may get no gradient, as in an initial FixUp network.
            if expected.any():
                found.setdefault(name, []).append(_compare(update[name], expected))
    depths = {name: depth for depth, name in enumerate(layers_of(trial.model))} | {ALL_LAYERS: -1}
    return [
        LayerDifference(name, depth, *map(fmean, zip(*found[name], strict=True)))
        for name, depth in depths.items()
        if len(found.get(name, [])) == number
    ]


def _compare(update: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Return cosine, norm ratio and relative distance of two vectors; the second is not zero."""
    length, expected = float(update.norm()), float(reference.norm())
    cosine = float(update @ reference) / (length * expected) if length else 0.0
    return cosine, length / expected, float((update - reference).norm()) / expected
