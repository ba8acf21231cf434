"""Averaging on the server: parameters' weighted mean, statistics by mean or pooled, counters.

The kinds of array and the formulas are those of METHOD: a state dict's names tell statistics
(``*.running_mean``, ``*.running_var``) and counters (``*.num_batches_tracked``) from parameters
(all else). torch fixes those names, so on the server, which has arrays only, they are enough.
Arrays of whole numbers that are no counters, such as a transformer's table of positions, are
treated as counters are: no optimiser trains them, and fractions of them mean nothing.

Sums run in float64 in the order of the replies and are rounded once, to the arrays' own type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Arrays = Mapping[str, Array]


class Kind(Enum):
    """What an array of a model's state is."""

    PARAMETER = "parameter"
    STATISTIC = "statistic"
    COUNTER = "counter"


def kind_of(name: str, dtype: DTypeLike = np.float32) -> Kind:
    """Tell the kind of an array from its name in the state dict, and its type."""
    match name.rsplit(".", 1)[-1]:
        case "running_mean" | "running_var":
            return Kind.STATISTIC
        case "num_batches_tracked":
            return Kind.COUNTER
        case _:
            return Kind.PARAMETER if np.dtype(dtype).kind in "fc" else Kind.COUNTER


def of_kind(arrays: Arrays, *kinds: Kind) -> dict[str, Array]:
    """Return the arrays of these kinds, in their order."""
    return {name: array for name, array in arrays.items() if kind_of(name, array.dtype) in kinds}


def weighted_mean(updates: Sequence[Arrays], weights: Sequence[float]) -> dict[str, Array]:
    """Return ``sum_k p_k x_k`` for every array, with ``p_k = weights[k] / sum(weights)``.

    Args:
        updates: one mapping a client, all with the same names and shapes.
        weights: one positive number a client, such as its number of examples.

    Returns:
        Arrays of the shapes and types of the first client's.
    """
    return {
        name: _round_to(_mean([update[name] for update in updates], weights), first.dtype)
        for name, first in updates[0].items()
    }


def pooled_statistics(updates: Sequence[Arrays], weights: Sequence[float]) -> dict[str, Array]:
    """Return mean and variance of the mixture of all clients' data.

    ``mu = sum_k p_k mu_k`` and, by the law of total variance,
    ``var = sum_k p_k (var_k + (mu_k - mu)^2)``, which counts the spread between the clients too.
    It equals ``sum_k p_k (var_k + mu_k^2) - mu^2`` and, unlike that form, cannot fall below zero
    by rounding.

    Args and returns: as for ``weighted_mean``, the names being those of statistics.
    """
    pooled = weighted_mean(updates, weights)
    for name in pooled:
        if name.endswith("running_var"):
            means = [update[name.removesuffix("var") + "mean"] for update in updates]
            mean = _mean(means, weights)
            spread = [
                update[name].astype(np.float64) + (own_mean - mean) ** 2
                for update, own_mean in zip(updates, means, strict=True)
            ]
            pooled[name] = _round_to(_mean(spread, weights), updates[0][name].dtype)
    return pooled


def merged_counters(updates: Sequence[Arrays]) -> dict[str, Array]:
    """Return the largest count of each counter: an integer of the same shape and type.

    An average of counts would be a float, which torch truncates on loading.
    """
    return {
        name: np.asarray(np.max([update[name] for update in updates], axis=0), dtype=first.dtype)
        for name, first in updates[0].items()
    }


def median_counters(updates: Sequence[Arrays]) -> dict[str, Array]:
    """Return the lower median of each counter, which a minority of clients cannot move.

    The maximum would be whatever one hostile client sends. A count of 2**62 stops a layer with
    ``momentum=None``, which divides by its count, from learning a statistic again.
    """
    middle = (len(updates) - 1) // 2
    return {
        name: np.sort(np.stack([update[name] for update in updates]), axis=0)[middle, ...]
        for name in updates[0]
    }


def _mean(values: Sequence[Array], weights: Sequence[float]) -> NDArray[np.float64]:
    total = float(sum(weights))
    mean = np.zeros(values[0].shape)
    for value, weight in zip(values, weights, strict=True):
        mean += value.astype(np.float64) * (weight / total)
    return mean


def _round_to(value: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
    # np.asarray: arithmetic on 0-d arrays gives scalars, which Flower's Array refuses.
    return np.asarray(value).astype(dtype)


def first_spoilt(arrays: Arrays, before: Arrays) -> str | None:
    """Return the name of the first array with NaN or infinity where there was none before."""
    for name, array in arrays.items():
        # A model may hold infinity by design, as the mask of an attention layer does.
        if array.dtype.kind == "f" and np.any(~np.isfinite(array) & np.isfinite(before[name])):
            return name
    return None
