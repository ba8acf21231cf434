"""The tasks at a size that two cores can run dozens of times: `task="simulation.small:CIFAR10"`.

The images are the real ones at half their height and width, each pixel the mean of four. CIFAR-10
has the first 2,000 of its test images and ResNet-8, the smallest network of He et al.'s family (one
block in each of the three stages); CamVid has every third of its test images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fixbn_flwr.models.resnet20 import ResidualNetwork
from fixbn_flwr.tasks import Split, Task, load_splits
from fixbn_flwr.tasks.camvid import TASK as CAMVID_WHOLE
from fixbn_flwr.tasks.cifar10 import TASK as CIFAR10_WHOLE
from fixbn_flwr.tasks.segmentation import Masks
from simulation.held_out import choose

_PART = 1000  # images halved at a time: as floats they take four times their memory


def halve(images: Tensor) -> Tensor:
    """Images at half their height and width, uint8 `[n, channels, height, width]`."""
    parts = (images[start : start + _PART].float() for start in range(0, len(images), _PART))
    return torch.cat([avg_pool2d(part, 2).round().to(torch.uint8) for part in parts])


def resnet8(norm: str = "bn", *, classes: int = 10) -> nn.Module:
    """Three stages of one block, 75,290 parameters."""
    return ResidualNetwork(3, classes, widths=(16, 32, 64), blocks=1, norm=norm)


def _smaller(task: Task, test: slice) -> Callable[[Path | None], tuple[Split, Split]]:
    def load(data_dir: Path | None) -> tuple[Split, Split]:
        train, whole = load_splits(task, data_dir)
        return _halved(train), _halved(choose(whole, torch.arange(len(whole))[test]))

    return load


def _halved(split: Split) -> Split:
    images, targets = split.images[:], split.targets[:]
    # A mask keeps one pixel of four: classes have no mean.
    kept = targets[..., ::2, ::2] if targets.ndim > 1 else targets
    return Split(halve(images), kept, split.groups)


CIFAR10 = replace(
    CIFAR10_WHOLE,
    name="cifar10-small",
    load=_smaller(CIFAR10_WHOLE, slice(2000)),
    models={"resnet8": resnet8, **CIFAR10_WHOLE.models},
)
CAMVID = replace(
    CAMVID_WHOLE,
    name="camvid-small",
    load=_smaller(CAMVID_WHOLE, slice(None, None, 3)),
    masks=Masks(crop=(80, 112), window=(96, 128), evaluation_batch=32),
)
