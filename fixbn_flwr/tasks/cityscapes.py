"""Cityscapes: segmentation of street scenes of 2048x1024 pixels from 50 cities into 19 classes.

M. Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016,
https://arxiv.org/abs/1604.01685, in the folders of `leftImg8bit_trainvaltest.zip` and
`gtFine_trainvaltest.zip`, which are free for research after registration. The validation images are
the test data, because the masks of the official test images are not public.

The images would take 19 GB as one tensor, and the masks 6 GB. So they stay in their files, and each
batch is read at full size. Training uses crops, and evaluation windows, of 1024x512 pixels; four
windows cover an image.
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
"""The label ids of the classes that are trained and scored, in the order of their train ids."""

TRAIN_IDS = np.full(256, IGNORED, np.uint8)
"""The train id of each label id. The mask files hold label ids."""
TRAIN_IDS[list(CLASSES.values())] = range(len(CLASSES))

IMAGE, MASK = "_leftImg8bit.png", "_gtFine_labelIds.png"


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """Load 2,975 training images of 18 cities and 500 test images of 3 other cities.

    The training images are grouped by city. Other images in the same folders work too if all have
    one size.

    Args:
        data_dir: The folder with `leftImg8bit` and `gtFine`, or with a folder `cityscapes` that has
            them. Default: `~/.cache/fixbn-flwr`.

    Raises:
        ConfigError: If images or masks are missing, cannot be opened, or differ in size.
    """
    folder = find_folder(data_dir, ["cityscapes"], ["leftImg8bit"])
    return _find(folder, "train"), _find(folder, "val")


def _find(folder: Path, split: str) -> Split:
    images = sorted((folder / "leftImg8bit" / split).glob(f"*/*{IMAGE}"))
    if not images:
        raise ConfigError(
            f"There are no files {folder / 'leftImg8bit' / split}/<city>/*{IMAGE}: unpack"
            " leftImg8bit_trainvaltest.zip there, or set data-dir to the folder that contains"
            " leftImg8bit."
        )
    masks = [
        folder / "gtFine" / split / path.parent.name / f"{path.name.removesuffix(IMAGE)}{MASK}"
        for path in images
    ]
    missing = [path for path in masks if not path.is_file()]
    if missing:
        raise ConfigError(
            f"{len(missing)} of {len(images)} images have no mask; the first missing mask is"
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
    """Return the height and width of all files. They are opened but not decoded."""
    shape: tuple[int, int] | None = None
    for paths, mode in ((images, "RGB"), (masks, "L")):
        for path in paths:
            try:
                with Image.open(path) as image:
                    found, width, height = image.mode, *image.size
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be read as an image ({error}): download the data again."
                ) from error
            shape = shape or (height, width)
            if (found, height, width) != (mode, *shape):
                raise ConfigError(
                    f"{path} has {height}x{width} pixels of mode {found}, not"
                    f" {shape[0]}x{shape[1]} of mode {mode}: all files must have one size, images"
                    " must be RGB, and masks must hold label ids."
                )
    assert shape is not None  # there is at least one image
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
    class_names=tuple(CLASSES),
)
