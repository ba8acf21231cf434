"""Measure how far clients are apart, from the replies that the server has anyway.

FixBN freezes the averaged statistics. If clients drift far from each other within a round, that
average fits none of them. So each round's statistics are compared, in units in which a layer's
normalised output changes by 1: deviations of running means are divided by the averaged standard
deviation, and running variances are compared by their logarithms.

Part of what differs is the noise of random batches. It is independent from round to round. So the
product of a client's deviations in two of its rounds has an expectation without that noise.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fixbn_flwr.method.averaging import Array, Arrays, mean_of_variance
from fixbn_flwr.method.reported_metrics import median_loss, medians
from fixbn_flwr.method.update import Update

_EPSILON = 1e-5  # torch's default in batch normalization, added to every variance
_SAMPLED = 2**17  # values of a large model that are compared
_LARGEST = 2**24  # bytes of clients' deviations that are kept

Rows = NDArray[np.float64]
"""One row per client, one column per channel of all layers."""


@dataclass(frozen=True)
class Signals:
    """What the replies of one round say about the clients.

    A signal of the statistics is None without statistics, and in calibration.

    Attributes:
        mean_disagreement: The variance of the running means between clients, divided by the
            averaged running variance; a mean over all channels of all layers.
        variance_disagreement: The variance of the running variances' logarithms between clients; a
            mean likewise.
        systematic_disagreement: The part of ``disagreement`` that is not the noise of random
            batches. None if no client has replied before.
        drift: The squared change of the averaged running means since the last round, divided by the
            averaged running variance; a mean likewise. None in the first round.
        update_norm: The length of a client's update of the parameters; a median over the clients.
        update_agreement: The squared length of the averaged update, divided by what it would be for
            unrelated updates of the same lengths. It is 1 for these, the number of clients for
            equal updates of equal clients, and below 1 where updates oppose each other.
        train_loss: The clients' training loss, a median of those that are finite. NaN if most are
            not; None if no client reported one.
        gradients: What clients reported of their gradients, medians by the names of the metrics.
        by_layer: ``variance_disagreement`` by the name of the layer.
    """

    mean_disagreement: float | None = None
    variance_disagreement: float | None = None
    systematic_disagreement: float | None = None
    drift: float | None = None
    update_norm: float = 0.0
    update_agreement: float = 1.0
    train_loss: float | None = None
    gradients: Mapping[str, float] = field(default_factory=dict)
    by_layer: Mapping[str, float] = field(default_factory=dict)

    @property
    def disagreement(self) -> float | None:
        """The mean of ``mean_disagreement`` and ``variance_disagreement``."""
        if self.mean_disagreement is None or self.variance_disagreement is None:
            return None
        return (self.mean_disagreement + self.variance_disagreement) / 2

    def as_metrics(self) -> dict[str, float]:
        """Return the signals as metrics of a round, without the clients' own training loss."""
        values = {
            "fixbn-mean-disagreement": self.mean_disagreement,
            "fixbn-variance-disagreement": self.variance_disagreement,
            "fixbn-systematic-disagreement": self.systematic_disagreement,
            "fixbn-drift": self.drift,
            "fixbn-update-norm": self.update_norm,
            "fixbn-update-agreement": self.update_agreement,
        }
        known = {name: value for name, value in values.items() if value is not None}
        return {**known, **self.gradients}


class SignalTracker:
    """Measures the signals of each round."""

    def __init__(self) -> None:
        self._mean: Array | None = None  # averaged running means after the last round
        self._deviations: dict[str, Array] = {}  # of means and of variances, by client

    def observe(
        self, updates: Mapping[Hashable, Update], sent: Arrays, *, frozen: bool = False
    ) -> Signals:
        """Return the signals of a round.

        Args:
            updates: The usable updates by client, at least one.
            sent: The parameters that the clients were sent, by name.
            frozen: Whether the statistics are frozen. Default: False.
        """
        listed = list(updates.values())
        total = sum(update.weight for update in listed)
        shares = np.array([update.weight / total for update in listed])
        norm, agreement = _compared_updates(listed, shares, sent)
        losses = [update.train_loss for update in listed if update.train_loss is not None]
        signals: dict[str, Any] = {
            "update_norm": norm,
            "update_agreement": agreement,
            "train_loss": median_loss(losses),
            "gradients": medians([update.gradients for update in listed]),
        }
        pairs = mean_of_variance(listed[0].arrays)
        if pairs and not frozen:
            signals |= self._of_statistics(updates, shares, pairs)
        return Signals(**signals)

    def _of_statistics(
        self, updates: Mapping[Hashable, Update], shares: Rows, pairs: Mapping[str, str]
    ) -> dict[str, Any]:
        listed, names = list(updates.values()), list(pairs)
        logs = np.log(_rows(listed, names) + _EPSILON)
        means = _rows(listed, list(pairs.values()))
        log, mean = shares @ logs, shares @ means
        variance = np.exp(log)
        means, logs = (means - mean) / np.sqrt(variance), logs - log
        of_channels = shares @ logs**2
        clients = [str(client) for client in updates]
        before, self._mean = self._mean, mean
        return {
            "mean_disagreement": float((shares @ means**2).mean()),
            "variance_disagreement": float(of_channels.mean()),
            "systematic_disagreement": self._systematic(clients, shares, np.hstack([means, logs])),
            "drift": None if before is None else float(((mean - before) ** 2 / variance).mean()),
            "by_layer": _by_layer(of_channels, names, listed[0].arrays),
        }

    def _systematic(self, clients: Sequence[str], shares: Rows, deviations: Rows) -> float | None:
        """Compare deviations with those of each client's last round, and keep them."""
        products = [
            (share, float((own * self._deviations[client]).mean()))
            for client, share, own in zip(clients, shares, deviations, strict=True)
            if client in self._deviations
        ]
        for client, own in zip(clients, deviations, strict=True):
            self._deviations.pop(client, None)  # so that the newest come last
            self._deviations[client] = own.astype(np.float32)
        while sum(own.nbytes for own in self._deviations.values()) > _LARGEST:
            del self._deviations[next(iter(self._deviations))]
        total = sum(share for share, _ in products)
        return float(sum(p * product for p, product in products) / total) if products else None

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, for a checkpoint."""
        return {"mean": self._mean, "deviations": self._deviations}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned."""
        self._mean, self._deviations = state["mean"], dict(state["deviations"])


def _rows(updates: Sequence[Update], names: Sequence[str]) -> Rows:
    return np.stack(
        [np.concatenate([u.arrays[name].ravel() for name in names]) for u in updates]
    ).astype(np.float64)


def _by_layer(of_channels: Rows, names: Sequence[str], arrays: Arrays) -> dict[str, float]:
    ends = np.cumsum([arrays[name].size for name in names])[:-1]
    layers = [name.removesuffix("running_var").removesuffix(".") for name in names]
    return {
        layer: float(part.mean())
        for layer, part in zip(layers, np.split(of_channels, ends), strict=True)
    }


def _compared_updates(updates: Sequence[Update], shares: Rows, sent: Arrays) -> tuple[float, float]:
    """Return the median length of updates, and how far they agree; see ``Signals``."""
    values = sum(array.size for array in sent.values())
    stride = -(-values // _SAMPLED) if values else 1
    sample = _sampled(sent, sent, stride)
    finite = np.isfinite(sample)  # a mask may hold infinity by design
    before = sample[finite]
    squares, mean = np.zeros(len(updates)), np.zeros_like(before)
    for client, (update, share) in enumerate(zip(updates, shares, strict=True)):
        change = _sampled(update.parameters, sent, stride)[finite]
        change -= before
        squares[client] = _squared(change)
        change *= before.dtype.type(share)
        mean += change
    unrelated = float(shares**2 @ squares)
    agreement = _squared(mean) / unrelated if 0.0 < unrelated < math.inf else 1.0
    whole = values / max(1, sample.size)
    return float(np.median(np.sqrt(whole * squares))), agreement


def _sampled(arrays: Arrays, like: Arrays, stride: int) -> Array:
    """Return every so-and-so-many value of all arrays, in float32 or wider."""
    if not like:
        return np.zeros(0, np.float32)
    flat = np.concatenate([arrays[name].ravel()[::stride] for name in like])
    return flat.astype(np.promote_types(flat.dtype, np.float32), copy=False)


def _squared(values: Array) -> float:
    # Not a BLAS product: its threads may sum in another order elsewhere.
    # In float64 (or its complex kin), because the square of a float32 can be too large for one.
    wide = np.promote_types(values.dtype, np.float64)
    return float(np.einsum("i,i->", values, values.conj(), dtype=wide).real)
