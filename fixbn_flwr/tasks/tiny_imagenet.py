"""Tiny-ImageNet: classification of 110,000 colour images of 64x64 pixels into 200 classes.

Made for Stanford's course CS231N from J. Deng et al., "ImageNet: A Large-Scale Hierarchical Image
Database", CVPR 2009. The official test images have no labels, so, as usual, the official validation
images are the test data.

The data are the official folder `tiny-imagenet-200`, as unpacked from `tiny-imagenet-200.zip`, or
two Parquet files, `train.parquet` and `validation.parquet`, with the columns `image` and
`label_200`. Both may hold fewer images. Classes are always numbered as the official 200, in the
alphabetical order of their WordNet ids, so that the network is the same.

The full data set takes 1.35 GB of memory in every process that loads it (the server and each
worker), and half a minute to decode at the start.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.resnet18 import resnet18
from fixbn_flwr.tasks.augmentation import crop_and_flip
from fixbn_flwr.tasks.images import decode, find_folder, read_parquet
from fixbn_flwr.tasks.metrics import Accuracy
from fixbn_flwr.tasks.task import Split, Task
from fixbn_flwr.tasks.tiny_imagenet_classes import CLASSES

SIZE = 64  # pixels


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """Load the training images, and the validation images as test images.

    Args:
        data_dir: The folder that contains `tiny-imagenet-200` (official) or `tiny-imagenet-50`
            (Parquet), the former if both, or one of these folders under another name. Default:
            `~/.cache/fixbn-flwr`.

    Raises:
        ConfigError: If the data is missing, damaged or incomplete.
    """
    names = ["tiny-imagenet-200", "tiny-imagenet-50"]
    folder = find_folder(data_dir, names, ["train", "train.parquet"])
    if (folder / "train.parquet").exists():
        read = partial(read_parquet, mode="RGB", size=SIZE, label="label_200", classes=len(CLASSES))
        return read(folder / "train.parquet"), read(folder / "validation.parquet")
    try:
        classes = _classes(folder / "train")
        return _read_train(folder / "train", classes), _read_validation(folder / "val", classes)
    except (OSError, UnicodeDecodeError) as error:
        raise _incomplete(str(error)) from error


def _incomplete(what: str) -> ConfigError:
    return ConfigError(
        f"Tiny-ImageNet is incomplete: {what}. Unpack all of tiny-imagenet-200.zip again, and set"
        " data-dir to the folder that contains tiny-imagenet-200."
    )


def _classes(train: Path) -> list[str]:
    classes = sorted(entry.name for entry in train.iterdir() if entry.is_dir())
    if len(classes) != len(CLASSES):
        raise _incomplete(f"{train} has {len(classes)} folders, not one for each of 200 classes")
    return classes


def _read_train(train: Path, classes: list[str]) -> Split:
    files = [sorted((train / name / "images").glob("*.JPEG")) for name in classes]
    numbers = [len(images) for images in files]
    # This detects a partly unpacked archive but allows a smaller data set with equal classes.
    if min(numbers) < max(numbers) or not max(numbers):
        fewest = train / classes[numbers.index(min(numbers))] / "images"
        raise _incomplete(
            f"{fewest} has {min(numbers)} images (*.JPEG), other classes have {max(numbers)}"
        )
    targets = torch.arange(len(CLASSES)).repeat_interleave(max(numbers))
    return _split([file for images in files for file in images], targets)


def _read_validation(folder: Path, classes: list[str]) -> Split:
    class_of = {name: number for number, name in enumerate(classes)}
    annotations = folder / "val_annotations.txt"
    files, targets = [], []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), start=1):
        image, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        if name not in class_of:
            raise _incomplete(
                f"{annotations}, line {number}, has the class {name!r}, which is not a folder of"
                " train"
            )
        files.append(folder / "images" / image)
        targets.append(class_of[name])
    images = len(list((folder / "images").glob("*.JPEG")))
    if images != len(files) or not files:
        raise _incomplete(
            f"{folder / 'images'} has {images} images (*.JPEG), but {annotations.name} has"
            f" {len(files)} lines"
        )
    return _split(files, torch.tensor(targets))


def _split(files: list[Path], targets: torch.Tensor) -> Split:
    return Split(decode(files, [str(file) for file in files], "RGB", (SIZE, SIZE)), targets)


TASK = Task(
    name="tiny-imagenet",
    classes=len(CLASSES),
    load=load,
    models={"resnet18": resnet18},
    mean=(122.45, 114.27, 101.36),
    std=(70.64, 68.62, 71.94),
    augment=crop_and_flip,
    loss=cross_entropy,
    metric=Accuracy,
    class_names=CLASSES,
)
