"""Metrics: small cases by hand, and the same values as torchmetrics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fixbn_flwr.tasks.metrics import Accuracy, MeanIoU


def test_accuracy_counts_images_not_classes() -> None:
    metric = Accuracy()
    metric.update(torch.eye(3)[[0, 0, 0, 2]], torch.tensor([0, 0, 0, 1]))
    assert metric.compute().item() == 0.75


def batches(*shape: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    found = []
    for number in (7, 1, 12):
        outputs = torch.randn(number, 5, *shape, generator=random)
        targets = torch.randint(4, (number, *shape), generator=random)  # never the last class
        found.append((outputs, targets))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_the_values_are_those_of_torchmetrics(seed: int) -> None:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    ours: list[tuple[Any, Any, tuple[int, ...]]] = [
        (Accuracy(), MulticlassAccuracy(5, average="micro"), ()),
        (MeanIoU(5, 255), MulticlassJaccardIndex(5, ignore_index=255), (4, 6)),
    ]
    for metric, expected, shape in ours:
        for outputs, targets in batches(*shape, seed=seed):
            if shape:
                targets[:, 0] = 255
                outputs[:, 4] = -9  # this class occurs nowhere
            metric.to(torch.device("cpu")).update(outputs, targets)
            expected.update(outputs, targets)
        assert metric.compute().item() == expected.compute().item()
