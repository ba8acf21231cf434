"""Segmentation of the images in a folder, with a mask for each in another folder.

    <data-dir>/train/images/<name>.jpg    and the same in <data-dir>/test
    <data-dir>/train/masks/<name>.png
    <data-dir>/classes.txt                one class on a line, in the order of the masks' values

`images` and `masks` may also be in <data-dir> itself; then a fifth become test images. A mask has
one channel, or a palette. Its values are the numbers of the lines in `classes.txt`, from 0, or what
the line says: `tumour = 255`. The value 255 marks pixels without a class, unless a line has it. A
line `- = 11` makes 11 another such value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks.data_task import DataOptions, DataTask
from fixbn_flwr.tasks.image_tree import (
    CLASSES,
    Example,
    images_in,
    listed_classes,
    root_of,
    splits_of,
)
from fixbn_flwr.tasks.pictures import opened, size_of
from fixbn_flwr.tasks.segmentation import IGNORED, Masks
from fixbn_flwr.tasks.task import Split, Stored

_UNKNOWN = 254  # in the table of values
_LOOKED_AT = 50  # masks
_NONE = "-"  # the name of values without a class


def read_classes(options: DataOptions) -> tuple[str, ...]:
    """Return the names of the classes.

    Raises:
        ConfigError: If the folder or its `classes.txt` is missing or cannot be used.
    """
    return tuple(name for name, _ in _values(root_of(options)) if name != _NONE)


def _values(root: Path) -> list[tuple[str, int]]:
    """Return the names in `classes.txt`, each with its value in the masks."""
    path, lines = root / CLASSES, listed_classes(root)
    if lines is None:
        raise ConfigError(
            f"{root} has no {CLASSES}: write one with the name of a class on each line, in the"
            " order of the values of the masks, from 0, or with the value, such as 'tumour = 255'."
        )
    named: list[tuple[str, int]] = []
    for number, line in enumerate(lines):
        name, equals, value = (text.strip() for text in line.rpartition("="))
        try:
            named.append((name, int(value)) if equals else (line, number))
        except ValueError as error:
            raise ConfigError(
                f"{path} has the line {line!r}: write NAME, or NAME = VALUE with the value of the"
                " class in the masks, from 0 to 255."
            ) from error
    values = [value for _, value in named]
    names = [name for name, _ in named if name != _NONE]
    if len(set(values)) < len(values) or len(set(names)) < len(names):
        raise ConfigError(f"{path} has a class or a value twice: give each class its own value.")
    if min(values) < 0 or max(values) > IGNORED or len(names) > _UNKNOWN:
        raise ConfigError(
            f"{path} has {len(names)} classes with values from {min(values)} to {max(values)}: use"
            f" at most {_UNKNOWN} classes, and values from 0 to 255."
        )
    return named


def load(options: DataOptions, class_names: Sequence[str]) -> tuple[Split, Split]:
    """Load the training and the test images with their masks.

    Raises:
        ConfigError: If a mask is missing or has an unknown value, or an image cannot be read.
    """
    root = root_of(options)
    numbers = {name: number for number, name in enumerate(class_names)} | {_NONE: IGNORED}
    table = np.full(256, _UNKNOWN, np.uint8)
    table[IGNORED] = IGNORED
    for name, value in _values(root):
        table[value] = numbers[name]
    path = root / CLASSES
    train, test = splits_of(options, _pairs, partial(_read_mask, table=table, classes=path))
    _check_binary(train.targets, class_names, path)
    return train, test


def _pairs(folder: Path) -> list[Example]:
    images, masks = folder / "images", folder / "masks"
    mask_of = {path.relative_to(masks).with_suffix(""): path for path in images_in(masks)}
    examples = []
    for path in images_in(images):
        mask = mask_of.get(path.relative_to(images).with_suffix(""))
        if mask is None:
            raise ConfigError(
                f"{path} has no mask: put one with the same name, such as"
                f" {masks / path.relative_to(images).with_suffix('.png')}."
            )
        sizes = size_of(path, str(path)), size_of(mask, str(mask))
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"{mask} has {sizes[1][0]}x{sizes[1][1]} pixels and its image"
                f" {sizes[0][0]}x{sizes[0][1]}: they must have the same size. Replace one."
            )
        examples.append(Example(path, mask=mask))
    return examples


def _check_binary(masks: Stored, class_names: Sequence[str], path: Path) -> None:
    """Check that the second of two classes, often the value 255, is not taken for "no class"."""
    if len(class_names) != 2 or not len(masks):
        return
    if set(np.unique(masks[:_LOOKED_AT])) == {0, IGNORED}:
        raise ConfigError(
            f"the masks have the value 255 and no pixel of {class_names[1]}: 255 marks pixels"
            f" without a class. If it is that class, write '{class_names[1]} = 255' in {path}."
        )


def _read_mask(
    path: Path, height: int, width: int, *, table: npt.NDArray[np.uint8], classes: Path
) -> Tensor:
    from PIL import Image, ImageOps

    mask = opened(path, str(path))
    if mask.mode not in ("1", "L", "P"):
        raise ConfigError(
            f"{path} has the mode {mask.mode}: save masks with one channel of 8 bits that holds the"
            " number of each pixel's class."
        )
    if mask.mode == "1":
        mask = Image.fromarray(np.asarray(mask).astype(np.uint8))
    if mask.size != (width, height):
        mask = ImageOps.fit(mask, (width, height), Image.Resampling.NEAREST)
    found = np.asarray(mask)  # with a palette, the numbers of its colours
    labels = table[found]
    if (labels == _UNKNOWN).any():
        value = int(found[labels == _UNKNOWN].max())
        raise ConfigError(
            f"{path} has the value {value}, which is no class of {classes}: add a line there, such"
            f" as 'NAME = {value}', or '- = {value}' for pixels without a class."
        )
    return torch.from_numpy(labels)


TASK = DataTask(
    name="folder-segmentation",
    read_classes=read_classes,
    load=load,
    masks=Masks(crop=(512, 512), window=(512, 512), evaluation_batch=8),
)
