"""Batch normalisation's statistics: find them, and freeze them while a model trains.

The second stage of FixBN (arXiv 2303.06530, section 4) normalises with fixed statistics in the
forward pass and so in the backward pass too, while the affine parameters and all other layers go on
training. Setting a layer to ``eval()`` does that only until somebody calls ``model.train()``, which
most training loops do at the start of every epoch. Here a frozen layer is, for as long as it is
frozen, an instance of a subclass whose ``training`` always reads False; it remembers what the loop
asked for and returns to that when it is thawed. Its forward pass, hooks, parameters and place in
the model stay its own, so ``torch.compile`` and ``copy.deepcopy`` see an ordinary module.

Layers are found by class, never by name: "bn" is in the name of 85 of ResNet-18's 100 arrays of
batch normalisation, and of none in VGG's or DenseNet's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, SupportsIndex, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin

from fixbn_flwr.errors import NoStatisticsError, StatisticsMovedError

_STATISTICS = ("running_mean", "running_var")


class _Frozen:
    """Mixed in before a layer's own class: reads as not training, remembers what was asked for."""

    @property
    def training(self) -> bool:
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        # Where nn.Module keeps it: thawing the layer brings this value back into force.
        self.__dict__["training"] = mode

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Copies and pickles are of the layer's own class: one made inside the block is an ordinary
        # layer afterwards, instead of staying frozen with nobody left to thaw it. Protocol 1 names
        # the class freely; from 2 on pickle insists on the class that the layer has now.
        create, arguments, *rest = cast(tuple[Any, ...], super().__reduce_ex__(1))
        own_class = type(self).__bases__[1]
        return (create, (own_class, *arguments[1:]), *rest)


@functools.cache
def _frozen_class(layer_class: type) -> type[nn.Module]:
    """Return the frozen twin of a layer's class, one for each class so that compiled code lasts."""
    return type(f"Frozen{layer_class.__name__}", (_Frozen, layer_class), {})


def statistics_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that keep running statistics, by their name in ``model``.

    These are all of torch's batch normalisations (1d, 2d, 3d, SyncBatchNorm), instance
    normalisations built with ``track_running_stats=True``, and every subclass of either.
    """
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _NormBase) and layer.running_mean is not None
    }


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all running means and variances, by their name in ``model.state_dict()``."""
    return {
        f"{name}.{kind}" if name else kind: getattr(layer, kind).detach().clone()
        for name, layer in statistics_layers(model).items()
        for kind in _STATISTICS
    }


@contextmanager
def freeze_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise with the running statistics, as they are now, for the length of a ``with`` block.

    The statistics are read and never written, in training mode too, whatever the block does with
    ``model.train()`` and ``model.eval()``. Everything else follows those calls as ever: dropout
    drops, affine parameters get gradients. Blocks may be nested; the outermost one thaws. A copy of
    the model made inside the block is an ordinary, thawed one.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    >>> with freeze_statistics(model):
    ...     _ = model.train()(torch.randn(1, 4))  # a batch of one trains
    >>> model[1].num_batches_tracked
    tensor(0)

    Raises:
        NoStatisticsError: the model has no layer with running statistics, or a lazy one that has
            neither seen a batch nor been loaded.
        StatisticsMovedError: at the end of the block a statistic differs from its value at the
            start, because the block wrote to it (``load_state_dict``, ``reset_running_stats``).
            Not raised over another exception.
    """
    layers = statistics_layers(model)
    if not layers:
        raise NoStatisticsError(
            f"{type(model).__name__} has no layer with running statistics, so there is nothing to "
            "freeze: FixBN needs batch normalisation with track_running_stats=True. For a model "
            "without it set freeze_after=1.0, or leave FixBN out."
        )
    _settle_lazy(layers)
    before = statistics(model)
    own_classes: dict[nn.Module, type[Any]] = {
        layer: type(layer) for layer in layers.values() if not isinstance(layer, _Frozen)
    }
    for layer, own_class in own_classes.items():
        layer.__class__ = _frozen_class(own_class)  # type: ignore[arg-type]  # a class is hashable
    try:
        yield
    finally:
        for layer, own_class in own_classes.items():
            layer.__class__ = own_class
    _check_unmoved(before, statistics(model))


def _settle_lazy(layers: dict[str, nn.Module]) -> None:
    """Make loaded lazy layers what they become at their next batch; that change would thaw."""
    for name, layer in layers.items():
        if not isinstance(layer, LazyModuleMixin):
            continue
        if layer.has_uninitialized_params():
            raise NoStatisticsError(
                f"layer {name!r} is a {type(layer).__name__} that knows no shapes yet, so it has "
                "no running statistics to freeze: run one batch through the model, or load the "
                "global arrays, first."
            )
        layer._infer_parameters(layer, (None,))  # the input is not read any more


def _check_unmoved(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    moved = [
        name
        for name, value in before.items()
        # The loop may have moved the model to another device.
        if name not in after or not torch.equal(value, after[name].to(value))
    ]
    if any(name in after and after[name].dtype != before[name].dtype for name in moved):
        name = moved[0]
        raise StatisticsMovedError(
            f"{len(moved)} of {len(before)} frozen statistics changed during local training, first "
            f"{name!r} from {before[name].dtype} to {after[name].dtype}: convert the model before "
            "the statistics are frozen, or train in lower precision with torch.autocast."
        )
    if moved:
        raise StatisticsMovedError(
            f"{len(moved)} of {len(before)} frozen statistics changed during local training, first "
            f"{moved[0]!r}. Something in the training loop wrote to them: load the global model "
            "before the statistics are frozen, and do not call reset_running_stats()."
        )
