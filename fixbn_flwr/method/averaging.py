"""Average the parameters, statistics and counters that clients return.

A model's state dict holds three kinds of array, identified by name because the server has arrays
but no modules:

- statistics: ``*.running_mean`` and ``*.running_var``;
- counters: ``*.num_batches_tracked``, and any other array of integers or booleans, such as a
  transformer's position ids, because no optimizer trains them;
- parameters: all other arrays.

Client ``k`` with ``n_k`` examples has the weight ``p_k = n_k / sum(n)``. Parameters are averaged
with these weights. So are the statistics before the freeze, as in FixBN's paper (Zhong, Chen, Chao,
"Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530), unless
``pooled_statistics`` is used instead.

Sums run in float64 in the order of the updates and are rounded once, to the arrays' own type.
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
    """The kind of an array in a model's state dict."""

    PARAMETER = "parameter"
    STATISTIC = "statistic"
    COUNTER = "counter"


def kind_of(name: str, dtype: DTypeLike = np.float32) -> Kind:
    """Return the kind of an array, given its name in the state dict and its type."""
    match name.rsplit(".", 1)[-1]:
        case "running_mean" | "running_var":
            return Kind.STATISTIC
        case "num_batches_tracked":
            return Kind.COUNTER
        case _:
            return Kind.PARAMETER if np.dtype(dtype).kind in "fc" else Kind.COUNTER


def of_kind(arrays: Arrays, *kinds: Kind) -> dict[str, Array]:
    """Return the arrays of the given kinds, in their original order."""
    return {name: array for name, array in arrays.items() if kind_of(name, array.dtype) in kinds}


def weighted_mean(updates: Sequence[Arrays], weights: Sequence[float]) -> dict[str, Array]:
    """Return ``sum_k p_k x_k`` for every array, with ``p_k = weights[k] / sum(weights)``.

    Args:
        updates: One mapping per client, all with the same names and shapes.
        weights: One positive number per client, such as its number of examples.

    Returns:
        Arrays with the shapes and types of the first client's.
    """
    return {
        name: _round_to(_mean([update[name] for update in updates], weights), first.dtype)
        for name, first in updates[0].items()
    }


def pooled_statistics(updates: Sequence[Arrays], weights: Sequence[float]) -> dict[str, Array]:
    """Return the mean and variance of the mixture of all clients' data.

    ``mu = sum_k p_k mu_k`` and, by the law of total variance,
    ``var = sum_k p_k (var_k + (mu_k - mu)^2)``. Unlike the mean of the variances, this includes the
    spread between clients. It equals ``sum_k p_k (var_k + mu_k^2) - mu^2``, but rounding cannot
    make it negative.

    Args:
        updates: The statistics of each client, all with the same names and shapes.
        weights: One positive number per client, such as its number of examples.

    Returns:
        Arrays with the shapes and types of the first client's.
    """
    pooled = weighted_mean(updates, weights)
    for name, mean_name in mean_of_variance(pooled).items():
        means = [update[mean_name] for update in updates]
        mean = _mean(means, weights)
        spread = [
            update[name].astype(np.float64) + (own_mean - mean) ** 2
            for update, own_mean in zip(updates, means, strict=True)
        ]
        pooled[name] = _round_to(_mean(spread, weights), updates[0][name].dtype)
    return pooled


def mean_of_variance(arrays: Arrays) -> dict[str, str]:
    """Return the name of the running mean that belongs to each running variance.

    A variance without a mean of its shape, as EvoNorm keeps it, is left out.
    """
    means = {
        name: name.removesuffix("var") + "mean"
        for name in arrays
        if name.rsplit(".", 1)[-1] == "running_var"
    }
    return {
        name: mean
        for name, mean in means.items()
        if mean in arrays and arrays[mean].shape == arrays[name].shape
    }


def merged_counters(updates: Sequence[Arrays]) -> dict[str, Array]:
    """Return the elementwise maximum of each counter, with its shape and type unchanged.

    A mean would be a float, which torch truncates when it loads it into an integer buffer.
    """
    return {
        name: np.asarray(np.max([update[name] for update in updates], axis=0), dtype=first.dtype)
        for name, first in updates[0].items()
    }


def median_counters(updates: Sequence[Arrays]) -> dict[str, Array]:
    """Return the elementwise lower median of each counter, which a minority cannot control.

    One hostile client can set the maximum. A layer with ``momentum=None`` divides by its count, so
    a count of 2**62 would stop it from updating its statistics.
    """
    middle = (len(updates) - 1) // 2
    return {
        name: np.sort(np.stack([update[name] for update in updates]), axis=0)[middle, ...]
        for name in updates[0]
    }


def _mean(values: Sequence[Array], weights: Sequence[float]) -> Array:
    total = float(sum(weights))
    wide = np.promote_types(values[0].dtype, np.float64)  # complex128 for complex momentum
    mean = np.zeros(values[0].shape, wide)
    for value, weight in zip(values, weights, strict=True):
        mean += value.astype(wide) * (weight / total)
    return mean


def _round_to(value: Array, dtype: np.dtype[Any]) -> Array:
    # Arithmetic on 0-d arrays returns scalars, which Flower's Array does not accept.
    return np.asarray(value).astype(dtype)


def first_spoilt(arrays: Arrays, before: Arrays) -> str | None:
    """Return the name of the first array with NaN or infinity that ``before`` does not have."""
    return next((name for name, array in arrays.items() if is_spoilt(array, before[name])), None)


def is_spoilt(array: Array, before: Array) -> bool:
    """Return whether an array has NaN or infinity that it did not have before.

    Some models hold infinity by design, for example in an attention mask. NaN in its place is new.
    """
    bad = ~np.isfinite(array)
    if not bad.any():
        return False
    became_nan = np.isnan(array) & ~np.isnan(before)
    return bool(np.any(bad & (np.isfinite(before) | became_nan)))
