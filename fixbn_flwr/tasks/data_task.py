"""Tasks whose classes are those of the data that the user names: `folder`, `hf:NAME`.

Their images are resized, become RGB, and are normalised by ImageNet's mean and standard deviation.
These are the same numbers on every machine, and those that most pretrained weights expect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.deeplab import deeplab
from fixbn_flwr.models.resnet18 import resnet18
from fixbn_flwr.models.resnet20 import resnet20
from fixbn_flwr.tasks.augmentation import crop, crop_and_flip
from fixbn_flwr.tasks.metrics import Accuracy
from fixbn_flwr.tasks.segmentation import Masks, mean_iou, pixel_cross_entropy
from fixbn_flwr.tasks.task import Split, Task

Augmentation = Literal["crop-and-flip", "crop", "none"]

MEAN = (123.675, 116.28, 103.53)
"""The mean of ImageNet's training images, per channel."""
STD = (58.395, 57.12, 57.375)

TEST_SHARE = 0.2  # of the images, where the data has no test images

_SHIFT = 8  # an image is shifted by up to its size divided by this, as 4 of 32 pixels in CIFAR-10

_CLASSIFIERS: Mapping[str, Callable[..., nn.Module]] = {"resnet20": resnet20, "resnet18": resnet18}
_SEGMENTERS: Mapping[str, Callable[..., nn.Module]] = {"deeplabv3plus": deeplab}


@dataclass(frozen=True)
class DataOptions:
    """How a data task reads its data: keys of the run config.

    Attributes:
        data_dir: The folder with the data. None if the task's name says where it is.
        image_size: The height and width of the images, in pixels. 0 keeps their own size, which
            must be the same for all.
        augmentation: The changes of training images: random shifts and mirroring, shifts alone, or
            none.
        label_column: The column with the classes, of a table. Default: the one that is evident.
        group_column: The column with the natural clients, of a table. Default: none.
        seed: The seed by which test images are chosen where the data has none.
        choose_test: Whether they are chosen. A node with its own data trains on all it has.
    """

    data_dir: Path | None = None
    image_size: int = 0
    augmentation: Augmentation = "crop-and-flip"
    label_column: str = ""
    group_column: str = ""
    seed: int = 0
    choose_test: bool = True


@dataclass(frozen=True, eq=False)
class DataTask:
    """A task that does not know its classes before it is given data.

    Attributes:
        name: The name of the task. Run folders are named after it.
        read_classes: Reads the names of the classes, fast.
        load: Reads the training and the test data, given the names of the classes.
        masks: As in `Task`.
    """

    name: str
    read_classes: Callable[[DataOptions], tuple[str, ...]]
    load: Callable[[DataOptions, Sequence[str]], tuple[Split, Split]]
    masks: Masks | None = field(default=None)

    @property
    def models(self) -> Mapping[str, Callable[..., nn.Module]]:
        """Builders of the models by name, which take `norm` and `classes`."""
        return _CLASSIFIERS if self.masks is None else _SEGMENTERS

    def of(self, options: DataOptions, class_names: Sequence[str] = ()) -> Task:
        """Return the task of some data.

        Args:
            options: Where and how to read the data.
            class_names: The names of the classes. Default: those of the data, which must be there.

        Raises:
            ConfigError: If the data is missing or has fewer than two classes.
        """
        names = tuple(class_names) or self.read_classes(options)
        if len(names) < 2:
            raise ConfigError(
                f"the data of task {self.name} has {len(names)} classes ({', '.join(names)}): two"
                " or more are needed. Add a class, or choose other data."
            )
        return Task(
            name=self.name,
            classes=len(names),
            load=lambda _: self.load(options, names),
            models={key: partial(make, classes=len(names)) for key, make in self.models.items()},
            mean=MEAN,
            std=STD,
            augment=_augment(options.augmentation) if self.masks is None else None,
            loss=cross_entropy if self.masks is None else pixel_cross_entropy,
            metric=Accuracy if self.masks is None else partial(mean_iou, len(names)),
            masks=self.masks,
            class_names=names,
        )


def _augment(name: Augmentation) -> Callable[[Tensor, torch.Generator], Tensor] | None:
    if name == "none":
        return None
    change = crop_and_flip if name == "crop-and-flip" else crop

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        return change(images, generator, padding=max(1, min(images.shape[2:]) // _SHIFT))

    return augment


def common_size(sizes: Sequence[tuple[int, int]], names: Sequence[str]) -> tuple[int, int]:
    """Return the height and width that all images have.

    Args:
        sizes: The height and width of each image, at least one.
        names: The name of each image in the error message.

    Raises:
        ConfigError: If their sizes differ.
    """
    for size, name in zip(sizes, names, strict=True):
        if size != sizes[0]:
            raise ConfigError(
                "image-size = 0: the images have different sizes, such as"
                f" {sizes[0][0]}x{sizes[0][1]} ({names[0]}) and {size[0]}x{size[1]} ({name}):"
                " set image-size to the height and width that all get, such as 64 or 224."
            )
    return sizes[0]


def held_out(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.bool_]:
    """Return which images become test images: a fifth of each class, chosen at random, `[n]`.

    A class with two images or more has one at least.

    Args:
        labels: The class of each image, `[n]`.
        seed: The seed of the choice.
    """
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        images = random.permutation(np.flatnonzero(labels == label))
        least = 1 if len(images) > 1 else 0
        chosen[images[: max(least, round(TEST_SHARE * len(images)))]] = True
    return chosen
