"""Normalisation layers by name, so that one network can be built with any of them.

bn: S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015, https://arxiv.org/abs/1502.03167.
gn: Y. Wu, K. He, "Group Normalization", ECCV 2018, https://arxiv.org/abs/1803.08494.
ln: J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", https://arxiv.org/abs/1607.06450.
in: D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization", https://arxiv.org/abs/1607.08022.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fixbn_flwr.errors import ConfigError

Normaliser = Callable[[int], nn.Module]
"""Makes the layer for feature maps `[n, channels, height, width]` from the number of channels."""


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


def _layer_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)  # one group: over channels, height and width together


def _instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


def _no_norm(_channels: int) -> nn.Module:
    return nn.Identity()


_NORMALISERS: dict[str, Normaliser] = {
    "bn": nn.BatchNorm2d,
    "gn": _group_norm,
    "ln": _layer_norm,
    "in": _instance_norm,
    "none": _no_norm,
}

NORMS = tuple(_NORMALISERS)


def normaliser(name: str) -> Normaliser:
    """What makes the normalisation layers of the kind `name`, one of `NORMS`.

    All but "none" scale and shift each channel by trained parameters; only "bn" keeps running
    statistics.

    Raises:
        ConfigError: there is no such kind.
    """
    if name not in _NORMALISERS:
        raise ConfigError(
            f"norm is {name!r}, which does not exist: choose one of {', '.join(NORMS)}."
        )
    return _NORMALISERS[name]
