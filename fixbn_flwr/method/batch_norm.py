"""Find the running statistics of batch normalization, and freeze them while a model trains.

In the second stage of FixBN (arXiv 2303.06530), batch normalization uses fixed statistics in the
forward pass, and therefore in the backward pass too. Its affine parameters and all other layers
keep training. Setting a layer to ``eval()`` is not enough: most training loops call
``model.train()`` at the start of every epoch, which undoes it.

A frozen layer is temporarily an instance of a subclass whose ``training`` attribute always reads
False. Calls of ``train()`` and ``eval()`` are recorded and take effect when the layer is thawed.
The layer object, its forward pass, hooks and parameters stay the same, so ``torch.compile`` and
``copy.deepcopy`` work as usual.

Layers are found by their buffers, because names of layers are unreliable: only 85 of the 100 batch
normalization arrays of ResNet-18 have "bn" in their name, and none of VGG's or DenseNet's do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, SupportsIndex, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from fixbn_flwr.errors import ConfigError, NoStatisticsError, StatisticsMovedError

_STATISTICS = ("running_mean", "running_var")


class _Frozen:
    """Mixin that makes a layer read as not training, and records the mode that is set."""

    @property
    def training(self) -> bool:
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        # nn.Module keeps its attribute here, so the value takes effect when the layer is thawed.
        self.__dict__["training"] = mode

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Copies and pickles get the layer's own class, since nothing would thaw them later.
        # Protocol 1 lets us name that class; protocol 2 and later require the current class.
        create, arguments, *rest = cast(tuple[Any, ...], super().__reduce_ex__(1))
        own_class = type(self).__bases__[1]
        return (create, (own_class, *arguments[1:]), *rest)


@functools.cache
def _frozen_class(layer_class: type) -> type[nn.Module]:
    """Return the frozen subclass of a layer's class, cached so that compiled code stays valid."""
    return type(f"Frozen{layer_class.__name__}", (_Frozen, layer_class), {})


def statistics_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that keep running statistics, by their name in ``model``.

    These are torch's batch normalization layers (1d, 2d, 3d, SyncBatchNorm), instance normalization
    layers with ``track_running_stats=True``, and every other layer with a buffer ``running_mean``
    or ``running_var``, such as in-place or hand-written batch normalization, and EvoNorm.

    Raises:
        ConfigError: If such a layer was compiled with ``torch.jit.script``.
    """
    layers = {name: layer for name, layer in model.named_modules() if _kinds(layer)}
    for name, layer in layers.items():
        if isinstance(layer, torch.jit.ScriptModule):
            raise ConfigError(
                f"layer {name!r} was compiled with torch.jit.script, so its statistics cannot be "
                "frozen: train the model as it was before, and script it afterwards."
            )
    return layers


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all running means and variances, by their name in ``model.state_dict()``."""
    return {
        f"{name}.{kind}" if name else kind: getattr(layer, kind).detach().clone()
        for name, layer in statistics_layers(model).items()
        for kind in _kinds(layer)
    }


def _kinds(layer: nn.Module) -> list[str]:
    """Return which statistics a layer has; the server knows each of them by its name alone."""
    buffers = dict(layer.named_buffers(recurse=False))  # that of a scripted module is no dict
    return [kind for kind in _STATISTICS if kind in buffers]


@contextmanager
def freeze_statistics(model: nn.Module) -> Iterator[None]:
    """Freeze the running statistics of a model inside a ``with`` block.

    Layers normalise with the statistics that they have at the start of the block and never update
    them, even in training mode. Everything else follows ``model.train()`` and ``model.eval()`` as
    usual: dropout drops, and affine parameters get gradients. Only a module that has the buffers of
    the statistics itself reads ``self.training`` as False, also where it passes it to a functional
    dropout. Blocks can be nested; leaving the outermost one thaws the statistics. A copy of the
    model made inside the block is not frozen.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from fixbn_flwr import freeze_statistics
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        >>> with freeze_statistics(model):
        ...     model.train()(torch.ones(1, 4)).sum().backward()  # works with a batch of one
        >>> model[1].num_batches_tracked
        tensor(0)
        >>> model[1].weight.grad is not None
        True

    Args:
        model: The model, with the statistics to freeze already loaded.

    Raises:
        ConfigError: If a layer with statistics was compiled with ``torch.jit.script``.
        NoStatisticsError: If no layer has running statistics, or a lazy layer is uninitialized.
        StatisticsMovedError: If a statistic has changed at the end of the block, for example by
            ``load_state_dict`` or ``reset_running_stats``. Not raised over another exception.
    """
    layers = statistics_layers(model)
    if not layers:
        raise NoStatisticsError(
            f"{type(model).__name__} has no layer with running statistics, so there is nothing to "
            "freeze: FixBN needs batch normalization with track_running_stats=True. For a model "
            "without it, set freeze_after=1.0 or do not use FixBN."
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
    """Convert loaded lazy layers now: converting at their next batch would thaw them."""
    for name, layer in layers.items():
        if not isinstance(layer, LazyModuleMixin):
            continue
        if layer.has_uninitialized_params():
            raise NoStatisticsError(
                f"layer {name!r} is an uninitialized {type(layer).__name__}, so it has no running "
                "statistics to freeze: run one batch through the model, or load the global arrays, "
                "first."
            )
        layer._infer_parameters(layer, (None,))  # initialized layers ignore the input


def _check_unmoved(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    moved = [
        name
        for name, value in before.items()
        # The training loop may have moved the model to another device.
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
