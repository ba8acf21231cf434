"""A task with ResNet-18 (122 arrays, 45 MB) on 64 random images: small data, a large model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from fixbn_flwr.models.resnet18 import resnet18
from fixbn_flwr.tasks import Split, Task
from fixbn_flwr.tasks.metrics import Accuracy

CLASSES = 200


def _load(_: Path | None) -> tuple[Split, Split]:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 64, 64), dtype=torch.uint8, generator=random)
    split = Split(images=images, targets=torch.arange(64))
    return split, split


TASK = Task(
    name="random-images",
    classes=CLASSES,
    load=_load,
    models={"resnet18": resnet18},
    mean=(127.5,) * 3,
    std=(73.9,) * 3,
    augment=None,
    loss=cross_entropy,
    metric=Accuracy,
)
