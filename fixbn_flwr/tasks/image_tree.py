"""Find the images of a folder: its sites, its training and test part, its classes.

A folder has the subfolders `train` and `test`, or neither. A folder of folders with `train` is a
folder of sites, which are natural clients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks.data_task import DataOptions, common_size, held_out
from fixbn_flwr.tasks.image_files import fits_in_memory, stored
from fixbn_flwr.tasks.pictures import rgb_pixels, size_of
from fixbn_flwr.tasks.task import Split, Stored

TRAIN, TESTS = "train", ("test", "val", "valid", "validation")
CLASSES = "classes.txt"
_SUFFIXES = {
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A folder with images of one site, for training, for tests, or for both.

    Attributes:
        folder: The folder.
        site: The number of its site.
        use: What its images are for; "both" if test images may be chosen among them.
    """

    folder: Path
    site: int
    use: str


@dataclass(frozen=True)
class Example:
    """An image of a folder.

    Attributes:
        image: Its file.
        label: The number of its class; 0 if it has a mask.
        mask: The file of its mask. None if it has a class.
    """

    image: Path
    label: int = 0
    mask: Path | None = None


def root_of(options: DataOptions) -> Path:
    """Return the folder of the data.

    Raises:
        ConfigError: If there is none.
    """
    if options.data_dir is None:
        raise ConfigError("data-dir is empty: set it to the folder with the images.")
    root = options.data_dir.expanduser()
    if not root.is_dir():
        raise ConfigError(f"data-dir is {root}, which is not a folder: check the path.")
    return root


def listed_classes(root: Path) -> list[str] | None:
    """Return the lines of `classes.txt` that are not empty; None if there is no such file.

    Raises:
        ConfigError: If it cannot be read, names no class, or names one twice.
    """
    path = root / CLASSES
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows writes a mark
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): save it as UTF-8 text.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ConfigError(f"{path} names no class: write the name of a class on each line.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{path} names {twice} twice: name each class once, one on a line.")
    return names


def parts_of(root: Path) -> list[Part]:
    """Return the folders with images: of each site, in the order of their names.

    Raises:
        ConfigError: If some folders are sites, and others are not.
    """
    return [
        part for number, site in enumerate(_sites_in(root)) for part in _parts_of_site(site, number)
    ]


def _sites_in(root: Path) -> list[Path]:
    if any((root / name).is_dir() for name in (TRAIN, *TESTS)):
        return [root]
    folders = folders_in(root)
    sites = [folder for folder in folders if (folder / TRAIN).is_dir()]
    if sites and len(sites) < len(folders):
        others = ", ".join(folder.name for folder in folders if folder not in sites)
        raise ConfigError(
            f"{root} has sites, such as {sites[0].name} with its folder {TRAIN}, and folders"
            f" without {TRAIN}: {others}. Give each a folder {TRAIN}, which may be empty, or move"
            " it elsewhere."
        )
    return sites or [root]


def _parts_of_site(site: Path, number: int) -> list[Part]:
    test = next((site / name for name in TESTS if (site / name).is_dir()), None)
    train = site / TRAIN
    if not train.is_dir():
        return [Part(site, number, "both") if test is None else Part(test, number, "test")]
    if test is None:
        return [Part(train, number, "both")]
    return [Part(train, number, "train"), Part(test, number, "test")]


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, by name, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """Return all image files in a folder and its subfolders, by name, without hidden ones.

    Files in a hidden subfolder are hidden, too, such as those in `.ipynb_checkpoints`.
    """
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def splits_of(
    options: DataOptions,
    examples_of: Callable[[Path], Sequence[Example]],
    read_mask: Callable[[Path, int, int], Tensor] | None = None,
) -> tuple[Split, Split]:
    """Return the training and the test images of a folder, grouped by site if it has sites.

    Args:
        options: Where the folder is, and the size of the images.
        examples_of: Returns the images of a part.
        read_mask: Reads a mask in a height and width. Default: the images have classes.

    Raises:
        ConfigError: If there are no images, or some cannot be used.
    """
    root = root_of(options)
    train: list[tuple[Example, int]] = []
    test: list[tuple[Example, int]] = []
    for part in parts_of(root):
        examples = examples_of(part.folder)
        labels = np.array([example.label for example in examples], dtype=np.int64)
        out = np.zeros(len(labels), bool)
        if part.use == "both" and options.choose_test:
            out = held_out(labels, options.seed)
        for example, is_held_out in zip(examples, out, strict=True):
            chosen = test if part.use == "test" or is_held_out else train
            chosen.append((example, part.site))
    if not train and not test:
        raise ConfigError(f"{root} has no images, such as PNG or JPEG files: check data-dir.")
    images = [example.image for example, _ in (*train, *test)]
    size = (options.image_size, options.image_size)
    if not options.image_size:
        names = [str(path) for path in images]
        size = common_size([size_of(path, str(path)) for path in images], names)
    has_sites = len({site for _, site in (*train, *test)}) > 1
    read = partial(
        _split,
        size=size,
        read_mask=read_mask,
        has_sites=has_sites,
        in_memory=fits_in_memory(len(images), (3, *size)),
    )
    return read(train), read(test)


def _split(
    examples: Sequence[tuple[Example, int]],
    *,
    size: tuple[int, int],
    read_mask: Callable[[Path, int, int], Tensor] | None,
    has_sites: bool,
    in_memory: bool,
) -> Split:
    images = stored(
        [e.image for e, _ in examples],
        partial(_read, size=size),
        (3, *size),
        in_memory=in_memory,
    )
    targets: Stored
    if read_mask is None:
        targets = torch.tensor([e.label for e, _ in examples], dtype=torch.int64)
    else:
        read = partial(_sized, read_mask, size=size)
        masks = [e.mask for e, _ in examples if e.mask]
        targets = stored(masks, read, size, in_memory=in_memory)
    groups = torch.tensor([site for _, site in examples], dtype=torch.int64) if has_sites else None
    return Split(images, targets, groups)


def _read(path: Path, *, size: tuple[int, int]) -> Tensor:
    return rgb_pixels(path, str(path), *size)


def _sized(
    read_mask: Callable[[Path, int, int], Tensor], path: Path, *, size: tuple[int, int]
) -> Tensor:
    return read_mask(path, *size)
