"""Normalisation layers by name, so that one network can be built with any of them.

bn: S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015, https://arxiv.org/abs/1502.03167.
gn: Y. Wu, K. He, "Group Normalization", ECCV 2018, https://arxiv.org/abs/1803.08494.
ln: J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", https://arxiv.org/abs/1607.06450.
in: D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization", https://arxiv.org/abs/1607.08022.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import nn

from fixbn_flwr.errors import ConfigError

Normaliser = Callable[[int], nn.Module]
"""Builds the layer for feature maps `[n, channels, height, width]` from the number of channels."""


def _group_norm(channels: int, *, groups: int) -> nn.Module:
    if channels % groups:
        raise ConfigError(
            f"norm is 'gn{groups}', but a layer of this network has {channels} channels, which"
            f" {groups} does not divide: choose a number of groups that divides the channels of"
            " every layer, such as gn2."
        )
    return nn.GroupNorm(groups, channels)


def _layer_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)  # one group: over channels, height and width together


def _instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)


def _no_norm(_channels: int) -> nn.Module:
    return nn.Identity()


_NORMALISERS: dict[str, Normaliser] = {
    "bn": nn.BatchNorm2d,
    "gn": partial(_group_norm, groups=2),
    "ln": _layer_norm,
    "in": _instance_norm,
    "none": _no_norm,
}

NORMS = tuple(_NORMALISERS)

_GROUPS = re.compile(r"gn([1-9][0-9]{0,5})")


def counts_groups(name: str) -> bool:
    """Return whether `name` is group normalisation with a number of groups, such as "gn8"."""
    return _GROUPS.fullmatch(name) is not None


def normaliser(name: str) -> Normaliser:
    """Return the builder of a normalisation's layers.

    All but "none" have a trained scale and shift per channel. Only "bn" has running statistics.
    "gn" has 2 groups and "gn8" has 8; building such a layer raises a `ConfigError` if the number of
    groups does not divide its channels.

    Args:
        name: One of `NORMS`, or "gn" with a number of groups, such as "gn8".

    Raises:
        ConfigError: If there is no such normalisation.
    """
    if with_groups := _GROUPS.fullmatch(name):
        return partial(_group_norm, groups=int(with_groups[1]))
    if name not in _NORMALISERS:
        raise ConfigError(
            f"norm is {name!r}, which does not exist: choose one of {', '.join(NORMS)}, or gn with"
            " a number of groups, such as gn8."
        )
    return _NORMALISERS[name]
