"""Small versions of tasks, which two cores can run dozens of times.

Use one as `task="simulation.experiments.small_tasks:CIFAR10"`.

Images have half their height and width; each pixel is the mean of four. CIFAR-10 has the first
2,000 of its test images and ResNet-8, the smallest network of He et al.'s family (one block in each
of the three stages). CamVid has every third of its test images. Tiny-ImageNet has ResNet-18 with a
quarter of its channels. `SCENES` are synthetic images, to test segmentation without data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fixbn_flwr.models.deeplab import deeplab
from fixbn_flwr.models.resnet20 import ResidualNetwork
from fixbn_flwr.tasks import Split, Task, load_splits
from fixbn_flwr.tasks.camvid import TASK as CAMVID_WHOLE
from fixbn_flwr.tasks.cifar10 import TASK as CIFAR10_WHOLE
from fixbn_flwr.tasks.pacs import TASK as PACS_WHOLE
from fixbn_flwr.tasks.segmentation import IGNORED, Masks, mean_iou, pixel_cross_entropy
from fixbn_flwr.tasks.tiny_imagenet import TASK as TINY_IMAGENET_WHOLE
from simulation.experiments.held_out_task import choose

_PART = 1000  # images halved at a time; as floats they need four times the memory


def halve(images: Tensor) -> Tensor:
    """Return images at half their height and width, uint8 `[n, channels, height, width]`."""
    parts = (images[start : start + _PART].float() for start in range(0, len(images), _PART))
    return torch.cat([avg_pool2d(part, 2).round().to(torch.uint8) for part in parts])


def resnet8(norm: str = "bn", *, classes: int = 10) -> nn.Module:
    """Return a residual network with three stages of one block, 75,290 parameters."""
    return ResidualNetwork(3, classes, widths=(16, 32, 64), blocks=1, norm=norm)


def narrow_resnet18(norm: str = "bn", *, classes: int = 200) -> nn.Module:
    """Return a network of ResNet-18's depth with a quarter of its channels, 714,776 parameters."""
    return ResidualNetwork(3, classes, widths=(16, 32, 64, 128), blocks=2, norm=norm)


def _smaller(task: Task, test: slice) -> Callable[[Path | None], tuple[Split, Split]]:
    def load(data_dir: Path | None) -> tuple[Split, Split]:
        train, whole = load_splits(task, data_dir)
        return _halved(train), _halved(choose(whole, torch.arange(len(whole))[test]))

    return load


def _halved(split: Split) -> Split:
    images, targets = split.images[:], split.targets[:]
    # Masks keep one pixel of four, since classes have no mean.
    kept = targets[..., ::2, ::2] if targets.ndim > 1 else targets
    return Split(halve(images), kept, split.groups)


def _boxes(number: int) -> Split:
    """Return images of a bright box on a dark background, with masks of the box; 8 groups."""
    random = torch.Generator().manual_seed(number)
    images = torch.randint(64, 128, (number, 3, 32, 32), dtype=torch.uint8, generator=random)
    masks = torch.zeros(number, 32, 32, dtype=torch.uint8)
    for image, mask in zip(images, masks, strict=True):
        top, left = torch.randint(16, (2,), generator=random).tolist()
        image[:, top : top + 16, left : left + 16] += 100
        mask[top : top + 16, left : left + 16] = 1
    masks[:, 0] = IGNORED
    return Split(images, masks, torch.arange(number) % 8)


CIFAR10 = replace(
    CIFAR10_WHOLE,
    name="cifar10-small",
    load=_smaller(CIFAR10_WHOLE, slice(2000)),
    models={"resnet8": resnet8, **CIFAR10_WHOLE.models},
)
PACS = replace(
    PACS_WHOLE,
    name="pacs-small",
    load=_smaller(PACS_WHOLE, slice(None)),
    models={"resnet8": partial(resnet8, classes=7), **PACS_WHOLE.models},
)
TINY_IMAGENET = replace(
    TINY_IMAGENET_WHOLE,
    name="tiny-imagenet-small",
    load=_smaller(TINY_IMAGENET_WHOLE, slice(None)),
    models={"narrow-resnet18": narrow_resnet18, **TINY_IMAGENET_WHOLE.models},
)
CAMVID = replace(
    CAMVID_WHOLE,
    name="camvid-small",
    load=_smaller(CAMVID_WHOLE, slice(None, None, 3)),
    masks=Masks(crop=(80, 112), window=(96, 128), evaluation_batch=32),
)
SCENES = Task(
    name="scenes",
    classes=2,
    load=lambda _: (_boxes(64), _boxes(16)),
    models={"deeplabv3plus": partial(deeplab, classes=2)},
    mean=(120.0, 120.0, 120.0),
    std=(50.0, 50.0, 50.0),
    augment=None,
    loss=pixel_cross_entropy,
    metric=partial(mean_iou, 2),
    masks=Masks(crop=(32, 32), window=(32, 32), evaluation_batch=16),
)
