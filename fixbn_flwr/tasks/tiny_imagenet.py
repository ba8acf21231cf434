"""Tiny-ImageNet: 110,000 colour images of 64x64 pixels in 200 classes of ImageNet.

Made for Stanford's course CS231N from J. Deng et al., "ImageNet: A Large-Scale Hierarchical Image
Database", CVPR 2009. As is usual, the official validation images are the test images here, since
the official test images have no labels.

Read from the official folder `tiny-imagenet-200`, as unpacked from `tiny-imagenet-200.zip`, or from
a folder of two Parquet files, `train.parquet` and `validation.parquet`, with the columns `image`
and `label_200`. Either may hold fewer images; classes are always numbered as the 200 are, in the
alphabetical order of their WordNet ids, so that the network is the same.

The whole set takes 1.35 GB of memory in every process that reads it (the server and each worker),
100,000 x 3 x 64 x 64 bytes of it for training, and is decoded once, at the start, in half a minute.
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
from fixbn_flwr.tasks.task import Split, Task, accuracy

CLASSES = 200
SIZE = 64  # pixels


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """All training images, and the validation images for the test.

    Args:
        data_dir: the folder that holds `tiny-imagenet-200` (official) or `tiny-imagenet-50`
            (Parquet), the former if both, or that is one of them under another name. None is
            `~/.cache/fixbn-flwr`.

    Raises:
        ConfigError: the data is missing, damaged or not whole.
    """
    names = ["tiny-imagenet-200", "tiny-imagenet-50"]
    folder = find_folder(data_dir, names, ["train", "train.parquet"])
    if (folder / "train.parquet").exists():
        read = partial(read_parquet, mode="RGB", size=SIZE, label="label_200", classes=CLASSES)
        return read(folder / "train.parquet"), read(folder / "validation.parquet")
    try:
        classes = _classes(folder / "train")
        return _read_train(folder / "train", classes), _read_validation(folder / "val", classes)
    except (OSError, UnicodeDecodeError) as error:
        raise _not_whole(str(error)) from error


def _not_whole(what: str) -> ConfigError:
    return ConfigError(
        f"Tiny-ImageNet is not whole: {what}. Unpack tiny-imagenet-200.zip anew, all of it, and set"
        " data-dir to the folder that holds tiny-imagenet-200."
    )


def _classes(train: Path) -> list[str]:
    classes = sorted(entry.name for entry in train.iterdir() if entry.is_dir())
    if len(classes) != CLASSES:
        raise _not_whole(f"{train} holds {len(classes)} folders, not one for each of 200 classes")
    return classes


def _read_train(train: Path, classes: list[str]) -> Split:
    files = [sorted((train / name / "images").glob("*.JPEG")) for name in classes]
    numbers = [len(images) for images in files]
    # Half an archive shows by this, and a smaller set of one's own making does not.
    if min(numbers) < max(numbers) or not max(numbers):
        fewest = train / classes[numbers.index(min(numbers))] / "images"
        raise _not_whole(
            f"{fewest} holds {min(numbers)} images (*.JPEG), other classes {max(numbers)}"
        )
    targets = torch.arange(CLASSES).repeat_interleave(max(numbers))
    return _split([file for images in files for file in images], targets)


def _read_validation(folder: Path, classes: list[str]) -> Split:
    place = {name: number for number, name in enumerate(classes)}
    annotations = folder / "val_annotations.txt"
    files, targets = [], []
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), start=1):
        image, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        if name not in place:
            raise _not_whole(
                f"{annotations}, line {number}, has {name!r} where a class should be, which is a"
                " folder of train"
            )
        files.append(folder / "images" / image)
        targets.append(place[name])
    there_are = len(list((folder / "images").glob("*.JPEG")))
    if there_are != len(files) or not files:
        raise _not_whole(
            f"{folder / 'images'} holds {there_are} images (*.JPEG), but {annotations.name} has"
            f" {len(files)} lines"
        )
    return _split(files, torch.tensor(targets))


def _split(files: list[Path], targets: torch.Tensor) -> Split:
    return Split(decode(files, [str(file) for file in files], "RGB", (SIZE, SIZE)), targets)


TASK = Task(
    name="tiny-imagenet",
    classes=CLASSES,
    load=load,
    models={"resnet18": resnet18},
    mean=(122.45, 114.27, 101.36),
    std=(70.64, 68.62, 71.94),
    augment=crop_and_flip,
    loss=cross_entropy,
    metric=partial(accuracy, CLASSES),
)
