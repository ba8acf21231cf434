"""Image classification data sets of Hugging Face, by flwr-datasets' `FederatedDataset`.

`hf:OWNER/NAME` is a data set of the Hub, `hf:OWNER/NAME:SUBSET` one of its subsets, and
`hf:/path/to/folder` a folder on this machine with Parquet files or images. With `data-dir`, the
name is that of a folder in it. Images stay encoded in the files that `datasets` maps into memory
until `fixbn_flwr.tasks.image_files.stored` reads them.

Q. Lhoest et al., "Datasets: A Community Library for Natural Language Processing", EMNLP 2021,
https://arxiv.org/abs/2109.02846.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks.data_task import DataOptions, DataTask, common_size
from fixbn_flwr.tasks.hugging_face_table import (
    TEST,
    TRAIN,
    class_names_of,
    group_numbers,
    image_column,
    label_column,
    no_column,
    with_test_rows,
)
from fixbn_flwr.tasks.image_files import fits_in_memory, stored
from fixbn_flwr.tasks.pictures import rgb_pixels, size_of
from fixbn_flwr.tasks.task import Split

PREFIX = "hf:"


def data_task(name: str) -> DataTask:
    """Return the task of a data set.

    Args:
        name: `hf:NAME`, see this module.

    Raises:
        ConfigError: If there is no name.
    """
    where, _, subset = name.removeprefix(PREFIX).partition(":")
    if not where:
        raise ConfigError(
            f"task is {name!r}: write the name of a data set after the colon, such as"
            " hf:ylecun/mnist, or the path of a folder."
        )
    return DataTask(
        name=re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-"),
        read_classes=partial(_read_classes, where=where, subset=subset),
        load=partial(_load, where=where, subset=subset),
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    """The training or the test rows of a data set.

    Attributes:
        name: Their name in error messages.
        dataset: The rows. Images are not decoded.
        image: The column with the images.
        labels: The number of the class of each row, int64 `[n]`.
        groups: The number of the natural client of each row, int64 `[n]`, or None.
    """

    name: str
    dataset: Any
    image: str
    labels: Tensor
    groups: Tensor | None

    def file(self, row: int) -> tuple[Path | BytesIO, str]:
        """Return an encoded image, and its name."""
        name = f"{self.name}, row {row}"
        cell = self.dataset[row][self.image]
        if cell and cell.get("bytes"):
            return BytesIO(cell["bytes"]), name
        if cell and cell.get("path"):
            return Path(cell["path"]), cell["path"]
        raise ConfigError(f"{name} has no image: remove the row.")

    def sizes(self) -> Iterator[tuple[tuple[int, int], str]]:
        """Yield the height and width of each image, with its name."""
        for row in range(len(self.labels)):
            file, name = self.file(row)
            yield size_of(file, name), name

    def pixels(self, row: int, *, height: int, width: int) -> Tensor:
        """Return an image."""
        return rgb_pixels(*self.file(row), height, width)

    def split(self, height: int, width: int, *, in_memory: bool) -> Split:
        """Return the images in a size, with their classes."""
        read = partial(self.pixels, height=height, width=width)
        rows, shape = range(len(self.labels)), (3, height, width)
        images = stored(rows, read, shape, in_memory=in_memory)
        return Split(images, self.labels, self.groups)


def _read_classes(options: DataOptions, *, where: str, subset: str) -> tuple[str, ...]:
    return _read(options, where, subset)[0]


def _load(
    options: DataOptions, _class_names: Sequence[str], *, where: str, subset: str
) -> tuple[Split, Split]:
    _, train, test = _read(options, where, subset)
    height = width = options.image_size
    if not options.image_size:
        sizes, names = zip(*train.sizes(), *test.sizes(), strict=True)
        height, width = common_size(sizes, names)
    in_memory = fits_in_memory(len(train.labels) + len(test.labels), (3, height, width))
    splits = (rows.split(height, width, in_memory=in_memory) for rows in (train, test))
    return next(splits), next(splits)


@lru_cache(maxsize=2)
def _read(options: DataOptions, where: str, subset: str) -> tuple[tuple[str, ...], _Rows, _Rows]:
    """Return the names of the classes, and the training and the test rows."""
    try:
        from datasets import ClassLabel, Image
        from flwr_datasets import FederatedDataset
    except ImportError as error:
        raise ConfigError(
            f"task is 'hf:{where}', which needs the package flwr-datasets ({error}): install it"
            ' with pip install "fixbn-flwr[hf]".'
        ) from error

    name = _name_of(where, options.data_dir)
    columns: dict[str, str] = {}

    def arrange(found: Any) -> Any:
        """Return the data set with the splits "train" and "test"."""
        features = found[next(iter(found))].features
        columns["image"] = image_column(
            name, [key for key, feature in features.items() if isinstance(feature, Image)]
        )
        classes = [key for key, feature in features.items() if isinstance(feature, ClassLabel)]
        columns["label"] = label_column(name, options.label_column, list(features), classes)
        if options.group_column and options.group_column not in features:
            raise no_column(name, "group-column", options.group_column, list(features))
        return with_test_rows(found, columns["label"], options)

    federated = FederatedDataset(
        dataset=name, subset=subset or None, partitioners={TRAIN: 1}, shuffle=False,
        preprocessor=arrange,
    )  # fmt: skip
    try:
        train, test = federated.load_split(TRAIN), federated.load_split(TEST)
    except ConfigError:
        raise
    # Data sets are code and files of others, fetched over a network: anything can fail.
    except Exception as error:
        raise ConfigError(
            f"task is 'hf:{where}', which cannot be loaded ({type(error).__name__}: {error}): check"
            " the name on https://huggingface.co/datasets, or the path; write a subset as"
            " hf:NAME:SUBSET."
        ) from error
    feature = train.features[columns["label"]]
    values = [list(rows[columns["label"]]) for rows in (train, test)]
    names = class_names_of(name, getattr(feature, "names", None), columns["label"], values)
    labels = values
    if not hasattr(feature, "names"):
        numbers = {class_name: number for number, class_name in enumerate(names)}
        labels = [[numbers[str(value)] for value in of_split] for of_split in values]
    groups: list[Tensor | None] = [None, None]
    if options.group_column:
        of_rows = [value for rows in (train, test) for value in rows[options.group_column]]
        of_rows_numbers = group_numbers(name, options.group_column, of_rows)
        groups = [torch.from_numpy(part) for part in np.split(of_rows_numbers, [len(train)])]
    rows = [
        _Rows(
            f"{name}, {part}",
            split.cast_column(columns["image"], Image(decode=False)),
            columns["image"],
            torch.tensor(label, dtype=torch.int64),
            group,
        )
        for part, split, label, group in zip(
            (TRAIN, TEST), (train, test), labels, groups, strict=True
        )
    ]
    return names, rows[0], rows[1]


def _name_of(where: str, data_dir: Path | None) -> str:
    """Return the name or path for `datasets`."""
    if data_dir is not None:
        folder = data_dir.expanduser() / where
        if not folder.is_dir():
            raise ConfigError(
                f"task is 'hf:{where}' and data-dir is {data_dir}, but there is no folder {folder}:"
                " leave data-dir empty to download the data set, or name a folder in data-dir."
            )
        return str(folder)
    if where.startswith(("~", "/", ".")):
        folder = Path(where).expanduser()
        if not folder.is_dir():
            raise ConfigError(
                f"task is 'hf:{where}', but there is no folder {folder}: check the path, or write"
                " the name of a data set, such as hf:ylecun/mnist."
            )
        return str(folder)
    return where
