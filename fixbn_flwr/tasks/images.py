"""Image files from disk into one uint8 tensor, with an error that names the file for any mistake.

The Parquet files have the layout of Hugging Face `datasets`: a column of images is a struct
`{bytes, path}` that holds an encoded JPEG or PNG, and every other column one value an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks.task import Split

DEFAULT_FOLDER = Path("~/.cache/fixbn-flwr")

Mode = Literal["RGB", "L"]
"""Pillow's names for three channels of colour and one of grey."""


def find_folder(data_dir: Path | None, names: Sequence[str], has: Sequence[str]) -> Path:
    """The folder of a data set: one of `names` in `data_dir`, or `data_dir` itself.

    Args:
        data_dir: where to look; None for `~/.cache/fixbn-flwr`.
        names: the folders that it may be, the better one first.
        has: files or folders, of which it holds one.

    Raises:
        ConfigError: there is none.
    """
    root = (data_dir or DEFAULT_FOLDER).expanduser()
    for folder in (*(root / name for name in names), root):
        if any((folder / name).exists() for name in has):
            return folder
    raise ConfigError(
        f"{root} holds no folder {' or '.join(names)} with {' or '.join(has)} in it: set data-dir"
        " to the folder that does, as nothing is downloaded for this task."
    )


def read_parquet(
    path: Path,
    *,
    mode: Mode,
    size: int,
    label: str,
    classes: int,
    group: str | None = None,
) -> Split:
    """The images of one Parquet file, in its order.

    Args:
        path: the file; its images are in the column `image`.
        mode: what images are converted to.
        size: height and width that every image must have, in pixels.
        label: the column of classes.
        classes: their number; they go from 0 to `classes - 1`.
        group: the column of natural clients, numbers or text; None when there is none.

    Raises:
        ConfigError: the file is missing, damaged or empty, or holds something else.
    """
    columns = read_columns(path, ["image", label, *([group] if group else [])])
    targets = np.asarray(columns[label])
    if targets.dtype.kind not in "iu" or targets.min() < 0 or targets.max() >= classes:
        raise ConfigError(
            f"{path}: the column {label} is not whole numbers from 0 to {classes - 1}; put the"
            " right file there."
        )
    files = encoded(path, columns["image"])
    rows = [f"{path}, row {row}" for row in range(len(files))]
    groups = None
    if group:
        groups = torch.from_numpy(np.unique(columns[group], return_inverse=True)[1])
    return Split(decode(files, rows, mode, (size, size)), torch.from_numpy(targets).long(), groups)


def read_columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a Parquet file as lists, none of them with a gap.

    Raises:
        ConfigError: the file is missing, damaged or empty, or lacks a column or a value.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            there_are, table = file.schema_arrow.names, file.read(columns=list(names))
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); put the whole file there, or set data-dir to the"
            " folder that holds it."
        ) from error
    for name in names:
        if name not in there_are or table[name].null_count or not len(table):
            raise ConfigError(
                f"{path} has no column {name} with a value in every row; its columns are"
                f" {', '.join(there_are)}, in {len(table)} rows. Put the"
                " right file there."
            )
    return {name: table[name].to_pylist() for name in names}


def encoded(path: Path, cells: Sequence[Any], column: str = "image") -> list[BytesIO]:
    """The encoded images in the cells of a column.

    Raises:
        ConfigError: a cell holds no bytes.
    """
    files = []
    for row, cell in enumerate(cells):
        content = cell.get("bytes") if isinstance(cell, dict) else None
        if not isinstance(content, bytes):
            raise ConfigError(
                f"{path}, row {row}: the column {column} holds no image (a struct with bytes); put"
                " the right file there."
            )
        files.append(BytesIO(content))
    return files


def decode(
    files: Sequence[Path | BytesIO], names: Sequence[str], mode: Mode, shape: tuple[int, int]
) -> Tensor:
    """Decode images, JPEG or PNG, into one tensor.

    Args:
        files: the images' files.
        names: what an error calls each of them.
        mode: what images are converted to.
        shape: the height and width that all must have.

    Returns:
        uint8 `[n, channels, height, width]`, with one channel for "L" and three for "RGB".

    Raises:
        ConfigError: a file is missing or damaged, or an image has another size.
    """
    from PIL import Image

    images = np.empty((len(files), len(mode), *shape), dtype=np.uint8)
    for place, (file, name) in enumerate(zip(files, names, strict=True)):
        try:
            with Image.open(file) as image:
                width, height = image.size
                if (height, width) != shape:  # not decoded: a small file may claim a huge image
                    raise ConfigError(
                        f"{name} has {height}x{width} pixels, not {shape[0]}x{shape[1]}; put the"
                        " original data there."
                    )
                pixels: npt.NDArray[np.uint8] = np.asarray(image.convert(mode))
        except ConfigError:
            raise
        # Of a broken file Pillow raises errors of many types, SyntaxError among them.
        except Exception as error:
            raise ConfigError(
                f"{name} cannot be read as an image ({error}); fetch the data anew."
            ) from error
        images[place] = pixels.reshape(*shape, len(mode)).transpose(2, 0, 1)
    return torch.from_numpy(images)
