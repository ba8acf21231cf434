"""What clients report of their training among their metrics, and medians over them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from fixbn_flwr.method.round_config import GRADIENT_COSINE, GRADIENT_NORM_RATIO

_HELD_OUT = {"val", "valid", "validation", "eval", "evaluation", "test"}


def training_loss(metrics: Mapping[str, object]) -> float | None:
    """Return the training loss among a client's metrics, or None.

    It is the first number whose name has both "train" and "loss" in it, or else "loss" and no word
    for held-out data, such as "val".
    """
    losses = {
        name: float(value)
        for name, value in metrics.items()
        if "loss" in name.lower() and isinstance(value, int | float)
    }
    of_training = [loss for name, loss in losses.items() if "train" in name.lower()]
    others = [loss for name, loss in losses.items() if not _HELD_OUT & _words(name)]
    return next(iter([*of_training, *others]), None)


def reported_gradients(report: Mapping[str, object]) -> dict[str, float]:
    """Return what a client reported of its gradients; nothing of it if it is not sound."""
    names = (GRADIENT_COSINE, GRADIENT_NORM_RATIO)
    values = [report.get(name) for name in names]
    sound = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    return dict(zip(names, sound, strict=True)) if len(sound) == len(names) else {}


def median_loss(losses: Sequence[float]) -> float | None:
    """Return the median of the finite losses; NaN if most are not, None without any.

    A few clients, hostile ones or ones without a batch, then cannot feign a run that falls apart.
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if 2 * len(finite) < len(losses):
        return math.nan
    return float(np.median(finite)) if finite else None


def medians(reports: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each metric over the clients that reported it."""
    names = dict.fromkeys(name for report in reports for name in report)
    return {n: float(np.median([r[n] for r in reports if n in r])) for n in names}


def _words(name: str) -> set[str]:
    """Return the words of a name such as "val_loss", "val/loss" or "valLoss"."""
    return {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}
