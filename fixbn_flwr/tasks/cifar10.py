"""CIFAR-10: classification of 60,000 colour images of 32x32 pixels into 10 classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University
of Toronto, 2009.
"""

from __future__ import annotations

import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.log import logger
from fixbn_flwr.models.resnet20 import resnet20
from fixbn_flwr.tasks.augmentation import crop_and_flip
from fixbn_flwr.tasks.images import DEFAULT_FOLDER
from fixbn_flwr.tasks.metrics import Accuracy
from fixbn_flwr.tasks.task import Split, Task

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """Load 50,000 training and 10,000 test images; download them first if necessary.

    Args:
        data_dir: An existing folder that contains `cifar-10-batches-py`, or to which it is
            downloaded. Default: `~/.cache/fixbn-flwr`, which is created if necessary.

    Raises:
        ConfigError: If `data_dir` does not exist, or the data is missing and the download fails.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise ConfigError(
            f"data-dir is {data_dir}, which is not a folder: set it to the folder that contains"
            " cifar-10-batches-py, or leave it empty to download CIFAR-10."
        )
    folder = (data_dir or DEFAULT_FOLDER).expanduser()
    try:
        return _read(folder, train=True), _read(folder, train=False)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"CIFAR-10 is incomplete in {folder}, and the download failed ({error}): unpack"
            f" cifar-10-python.tar.gz so that {folder / 'cifar-10-batches-py'} exists, or set"
            " data-dir to the folder that contains cifar-10-batches-py."
        ) from error


def _read(folder: Path, *, train: bool) -> Split:
    from torchvision.datasets import CIFAR10

    if not (folder / CIFAR10.base_folder).is_dir():
        logger.info("Downloading CIFAR-10 (170 MB) to %s", folder)
    # torchvision's progress bar would mix with our log lines.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        dataset = CIFAR10(str(folder), train=train, download=True)
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)
    return Split(images, torch.tensor(dataset.targets))


TASK = Task(
    name="cifar10",
    classes=len(CLASSES),
    load=load,
    models={"resnet20": resnet20},
    mean=(125.31, 122.95, 113.87),
    std=(62.99, 62.09, 66.70),
    augment=crop_and_flip,
    loss=cross_entropy,
    metric=Accuracy,
    class_names=CLASSES,
)
