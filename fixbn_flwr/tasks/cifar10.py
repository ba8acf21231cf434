"""CIFAR-10: 60,000 colour images of 32x32 pixels in 10 classes, with random crops and flips.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University
of Toronto, 2009. The augmentation is that of K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual
Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385, section 4.2.
"""

from __future__ import annotations

import logging
import os
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.resnet20 import resnet20
from fixbn_flwr.tasks.task import Split, Task, accuracy

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = Path("~/.cache/fixbn-flwr")
PADDING = 4  # pixels on every side, before a crop of the original size


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """50,000 training and 10,000 test images, downloaded first if they are not there.

    Args:
        data_dir: the folder that holds, or shall hold, `cifar-10-batches-py`; it must exist. None
            is `~/.cache/fixbn-flwr`, which is made if need be.

    Raises:
        ConfigError: `data_dir` does not exist, or the data is not there and the download failed.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise ConfigError(
            f"data-dir is {data_dir}, which is not a folder: name the folder that holds"
            " cifar-10-batches-py, or leave data-dir empty to have CIFAR-10 downloaded."
        )
    folder = (data_dir or DEFAULT_FOLDER).expanduser()
    try:
        return _read(folder, train=True), _read(folder, train=False)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"CIFAR-10 is not whole in {folder}, and the download failed ({error}): put the folder"
            f" cifar-10-batches-py of cifar-10-python.tar.gz at {folder / 'cifar-10-batches-py'},"
            " or set data-dir to the folder that holds it."
        ) from error


def _read(folder: Path, *, train: bool) -> Split:
    from torchvision.datasets import CIFAR10

    if not (folder / CIFAR10.base_folder).is_dir():
        logger.info("Downloading CIFAR-10 (170 MB) to %s", folder)
    # torchvision draws a progress bar, which would be torn by the log lines around it.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        dataset = CIFAR10(str(folder), train=train, download=True)
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)
    return Split(images, torch.tensor(dataset.targets))


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to 4 pixels each way, filling with zeros, and mirror every other one.

    Zero is the mean colour, because the batch is normalised already.

    Args:
        images: a batch, float `[n, channels, height, width]`.
        generator: where the shifts and mirrorings are drawn from.

    Returns:
        A batch of the same shape, on the device of `images`.
    """
    number, channels, height, width = images.shape
    here, there = images.device, generator.device
    shifts = torch.randint(2 * PADDING + 1, (2, number, 1), generator=generator, device=there)
    mirrored = torch.randint(2, (number, 1), generator=generator, device=there)
    top, left = shifts.to(here)
    columns = torch.arange(width, device=here)
    columns = left + torch.where(mirrored.to(here) == 1, columns.flip(0), columns)  # [n, width]
    rows = top + torch.arange(height, device=here)  # [n, height]
    image = torch.arange(number, device=here).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=here).view(1, -1, 1, 1)
    padded = pad(images, (PADDING, PADDING, PADDING, PADDING))
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


TASK = Task(
    name="cifar10",
    classes=10,
    load=load,
    models={"resnet20": resnet20},
    mean=(125.31, 122.95, 113.87),
    std=(62.99, 62.09, 66.70),
    augment=crop_and_flip,
    loss=cross_entropy,
    metric=partial(accuracy, 10),
)
