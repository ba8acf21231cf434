"""A small model with a BatchNorm layer, input for it and a check of its statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fixbn_flwr.method.batch_norm import statistics


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


def rows(n: int = 6) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1))


def statistics_unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = statistics(model)
    return before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
