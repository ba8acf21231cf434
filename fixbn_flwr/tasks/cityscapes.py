"""Cityscapes: street scenes of 2048x1024 pixels from 50 cities, with 19 classes; a city a client.

M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016,
https://arxiv.org/abs/1604.01685, in the folders of `leftImg8bit_trainvaltest.zip` and
`gtFine_trainvaltest.zip`, which are free for research after a registration. Tested on the
validation images, as the masks of the test images are not public.

The images as one tensor would take 19 GB, the masks 6 GB more: they stay in their files, from which
each batch is read at full size. Trained on crops and evaluated in windows of 1024x512 pixels, of
which four make an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.deeplab import deeplab
from fixbn_flwr.tasks.image_files import ImageFiles
from fixbn_flwr.tasks.images import decode, find_folder
from fixbn_flwr.tasks.segmentation import IGNORED, Masks, mean_iou, pixel_cross_entropy
from fixbn_flwr.tasks.task import Split, Task

CLASSES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""The classes that are trained and scored, by train id from 0 on, each with its label id."""

TRAIN_IDS = np.full(256, IGNORED, np.uint8)
"""From a label id, which is what the mask files hold, to the train id."""
TRAIN_IDS[list(CLASSES.values())] = range(len(CLASSES))

IMAGE, MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """2,975 training images, whose groups are 18 cities, and 500 of 3 other cities to test on.

    Any other tree in these folders does as well, as long as its images have one size.

    Args:
        data_dir: the folder that holds `leftImg8bit` and `gtFine`, or a folder `cityscapes` with
            them in it. None is `~/.cache/fixbn-flwr`.

    Raises:
        ConfigError: images or masks are missing or cannot be opened, or differ in size.
    """
    folder = find_folder(data_dir, ["cityscapes"], ["leftImg8bit"])
    return _find(folder, "train"), _find(folder, "val")


def _find(folder: Path, split: str) -> Split:
    images = sorted((folder / "leftImg8bit" / split).glob(f"*/*{IMAGE}"))
    if not images:
        raise ConfigError(
            f"There are no files {folder / 'leftImg8bit' / split}/<city>/*{IMAGE}: unpack"
            " leftImg8bit_trainvaltest.zip there, or set data-dir to the folder that has them."
        )
    masks = [
        folder / "gtFine" / split / path.parent.name / f"{path.name.removesuffix(IMAGE)}{MASK}"
        for path in images
    ]
    missing = [path for path in masks if not path.is_file()]
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(images)} images have no mask; the first that is missing is"
            f" {missing[0]}: unpack gtFine_trainvaltest.zip beside leftImg8bit."
        )
    shape = _shape(images, masks)
    cities = [path.parent.name for path in images]
    return Split(
        ImageFiles(images, partial(_read_image, shape=shape)),
        ImageFiles(masks, partial(_read_mask, shape=shape)),
        torch.from_numpy(np.unique(cities, return_inverse=True)[1]),
    )


def _shape(images: Sequence[Path], masks: Sequence[Path]) -> tuple[int, int]:
    """Height and width of all files, which are opened but not decoded."""
    shape: tuple[int, int] | None = None
    for paths, mode in ((images, "RGB"), (masks, "L")):
        for path in paths:
            try:
                with Image.open(path) as image:
                    found, width, height = image.mode, *image.size
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be read as an image ({error}); fetch the data anew."
                ) from error
            shape = shape or (height, width)
            if (found, height, width) != (mode, *shape):
                raise ConfigError(
                    f"{path} has {height}x{width} pixels of mode {found}, not"
                    f" {shape[0]}x{shape[1]} of mode {mode}; put files of one size there, colour"
                    " images and masks of label ids."
                )
    assert shape is not None  # there is one image at least
    return shape


def _read_image(path: Path, *, shape: tuple[int, int]) -> Tensor:
    return decode([path], [str(path)], "RGB", shape)[0]


def _read_mask(path: Path, *, shape: tuple[int, int]) -> Tensor:
    label_ids = decode([path], [str(path)], "L", shape)[0, 0]
    return torch.from_numpy(TRAIN_IDS[label_ids.numpy()])


TASK = Task(
    name="cityscapes",
    classes=len(CLASSES),
    load=load,
    models={"deeplabv3plus": partial(deeplab, classes=len(CLASSES))},
    mean=(73.16, 82.91, 72.39),
    std=(47.67, 48.49, 47.74),
    augment=None,
    loss=pixel_cross_entropy,
    metric=partial(mean_iou, len(CLASSES)),
    masks=Masks(crop=(512, 1024), window=(512, 1024), evaluation_batch=4),
)
