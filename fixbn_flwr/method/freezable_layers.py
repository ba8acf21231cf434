"""Check that layers which do not come from torch can be frozen."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fixbn_flwr.errors import ConfigError, StatisticsMovedError
from fixbn_flwr.method.batch_norm import freeze_statistics, statistics, statistics_layers

_CHECKED: dict[type, bool] = {}


def check_freezable(model: nn.Module) -> None:
    """Refuse layers with running statistics that ``freeze_statistics`` cannot freeze.

    torch's own layers can be frozen. Another class is tried once with a small batch: frozen, it
    must leave its statistics alone and normalise each example by itself. A class that accepts no
    such batch is left to the check at the end of every ``freeze_statistics`` block.

    Args:
        model: The model, before its first round.

    Raises:
        ConfigError: If a layer's class ignores its training mode.
    """
    for name, layer in statistics_layers(model).items():
        kind = type(layer)
        if isinstance(layer, _NormBase):
            continue
        if kind not in _CHECKED:
            _CHECKED[kind] = _freezes(layer)
        if not _CHECKED[kind]:
            raise ConfigError(
                f"layer {name!r} is a {kind.__name__}, which updates or ignores its running "
                "statistics although its training attribute is False, so FixBN cannot freeze it: "
                "make its forward() use running_mean and running_var when self.training is False, "
                "use torch.nn.BatchNorm2d, or use the strategy without FixBN."
            )


def _freezes(layer: nn.Module) -> bool:
    """Return whether a layer uses its statistics, and keeps them, while it is frozen."""
    twin = copy.deepcopy(layer).train()
    for child in twin.children():
        child.eval()  # dropout in it would make any two outputs differ
    statistic = next(iter(statistics(twin).values()))
    for dimensions in _shapes(statistic.numel()):
        generator = torch.Generator().manual_seed(0)
        batch = torch.randn(dimensions, generator=generator).to(statistic)
        try:
            with torch.no_grad(), freeze_statistics(twin):
                whole, alone = twin(batch), twin(batch[:1])
        except StatisticsMovedError:
            return False
        except Exception:  # of any type, as from an assert about the number of dimensions
            continue
        return torch.allclose(_tensor(whole)[:1], _tensor(alone), atol=1e-5)
    return True


def _shapes(channels: int) -> tuple[tuple[int, ...], ...]:
    return (4, channels, 3, 3), (4, channels), (4, channels, 3), (4, channels, 3, 3, 3)


def _tensor(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else torch.zeros(1)
