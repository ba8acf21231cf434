"""Classification of the images in a folder, with a subfolder for each class.

    <data-dir>/train/<class>/<any name>.png    and the same in <data-dir>/test
    <data-dir>/<class>/<any name>.png          a fifth of each class becomes test images
    <data-dir>/<site>/train/<class>/...        each site is a natural client

The layout is that of torchvision's `ImageFolder`. A file `classes.txt` in the folder, with one name
on a line, fixes the classes and their order. Without it, they are the names of the folders, in
alphabetical order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks.data_task import DataOptions, DataTask
from fixbn_flwr.tasks.image_tree import (
    CLASSES,
    TESTS,
    TRAIN,
    Example,
    folders_in,
    images_in,
    listed_classes,
    parts_of,
    root_of,
    splits_of,
)
from fixbn_flwr.tasks.task import Split


def read_classes(options: DataOptions) -> tuple[str, ...]:
    """Return the names of the classes.

    Raises:
        ConfigError: If the folder is missing, a folder of images is not in `classes.txt`, or a
            class has the name of a part, such as `train`.
    """
    root = root_of(options)
    parts = parts_of(root)
    folders = [folder for part in parts for folder in folders_in(part.folder)]
    for part in parts:
        if part.folder != root:
            _check_not_a_class(part.folder)
    listed = listed_classes(root)
    if listed is None:
        if not folders:
            raise ConfigError(
                f"{root} has no folders, one for each class, with images in them: check data-dir."
            )
        return tuple(sorted({folder.name for folder in folders}))
    for folder in folders:
        if folder.name not in listed:
            raise ConfigError(
                f"{folder} is not a class of {root / CLASSES}, which names {', '.join(listed)}: add"
                " the class there on every machine, or rename or remove the folder."
            )
    return tuple(listed)


def _check_not_a_class(part: Path) -> None:
    """Check that a folder `train` or `test` is not a class among others."""
    beside = [folder for folder in folders_in(part.parent) if folder.name not in (TRAIN, *TESTS)]
    is_class = part.name in (TRAIN, *TESTS) and not folders_in(part) and images_in(part)
    if is_class and beside:
        use = "training" if part.name == TRAIN else "test"
        raise ConfigError(
            f"{part} is taken for the {use} images, but has no folders, one for each class. If it"
            f" is a class, as {beside[0].name} beside it, move all classes into a folder {TRAIN},"
            f" so that this one is {part.parent / TRAIN / part.name}."
        )


def load(options: DataOptions, class_names: Sequence[str]) -> tuple[Split, Split]:
    """Load the training and the test images.

    Raises:
        ConfigError: If there are no images, or some cannot be read.
    """
    return splits_of(options, partial(_examples, class_names=class_names))


def _examples(folder: Path, *, class_names: Sequence[str]) -> list[Example]:
    return [
        Example(image, label)
        for label, name in enumerate(class_names)
        if (folder / name).is_dir()
        for image in images_in(folder / name)
    ]


TASK = DataTask(name="folder", read_classes=read_classes, load=load)
