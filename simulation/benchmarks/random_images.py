"""Tasks with random images, for measurements that need no data."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from fixbn_flwr.models.resnet18 import resnet18
from fixbn_flwr.models.resnet20 import resnet20
from fixbn_flwr.tasks import Split, Task
from fixbn_flwr.tasks.augmentation import crop_and_flip
from fixbn_flwr.tasks.metrics import Accuracy


def _load(images: int, pixels: int, classes: int, _: Path | None) -> tuple[Split, Split]:
    random = torch.Generator().manual_seed(0)
    shape = (images, 3, pixels, pixels)
    stored = torch.randint(256, shape, dtype=torch.uint8, generator=random)
    targets = torch.arange(images) % classes
    return Split(stored, targets), Split(stored[:1000], targets[:1000])


# ResNet-18 (122 arrays, 45 MB) on 64 images: small data, a large model.
TASK = Task(
    name="random-images",
    classes=200,
    load=partial(_load, 64, 64, 200),
    models={"resnet18": resnet18},
    mean=(127.5,) * 3,
    std=(73.9,) * 3,
    augment=None,
    loss=cross_entropy,
    metric=Accuracy,
)


def _cifar10_shaped(images: int) -> Task:
    return Task(
        name="cifar10-shaped",
        classes=10,
        load=partial(_load, images, 32, 10),
        models={"resnet20": resnet20, "resnet18": resnet18},
        mean=(127.5,) * 3,
        std=(73.9,) * 3,
        augment=crop_and_flip,
        loss=cross_entropy,
        metric=Accuracy,
    )


IMAGES_50000 = _cifar10_shaped(50_000)
IMAGES_5000 = _cifar10_shaped(5_000)
