"""Read images from disk into one uint8 tensor; every error names the file.

The Parquet files have the layout of Hugging Face `datasets`: an image column is a struct
`{bytes, path}` with an encoded JPEG or PNG, and every other column has one value per image.
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
"""Pillow's names for colour and grey images."""


def find_folder(data_dir: Path | None, names: Sequence[str], has: Sequence[str]) -> Path:
    """Return the folder of a data set: one of `names` in `data_dir`, or `data_dir` itself.

    Args:
        data_dir: Where to look. Default: `~/.cache/fixbn-flwr`.
        names: The possible names of the folder, the preferred one first.
        has: Files or folders, at least one of which the folder contains.

    Raises:
        ConfigError: If there is no such folder.
    """
    root = (data_dir or DEFAULT_FOLDER).expanduser()
    for folder in (*(root / name for name in names), root):
        if any((folder / name).exists() for name in has):
            return folder
    raise ConfigError(
        f"{root} contains no folder {' or '.join(names)} with {' or '.join(has)} in it: set"
        " data-dir to the folder that does. This task downloads nothing."
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
    """Read the images of a Parquet file, in its order.

    Args:
        path: The file. Its images are in the column `image`.
        mode: The mode that images are converted to.
        size: The height and width that every image must have, in pixels.
        label: The column with the classes.
        classes: The number of classes. They are numbered from 0 to `classes - 1`.
        group: The column with the natural clients, numbers or strings. None if there is none.

    Raises:
        ConfigError: If the file is missing, damaged or empty, or has other contents.
    """
    columns = read_columns(path, ["image", label, *([group] if group else [])])
    targets = np.asarray(columns[label])
    if targets.dtype.kind not in "iu" or targets.min() < 0 or targets.max() >= classes:
        raise ConfigError(
            f"{path}: the column {label} must hold integers from 0 to {classes - 1}: replace"
            " the file."
        )
    files = encoded(path, columns["image"])
    rows = [f"{path}, row {row}" for row in range(len(files))]
    groups = None
    if group:
        groups = torch.from_numpy(np.unique(columns[group], return_inverse=True)[1])
    return Split(decode(files, rows, mode, (size, size)), torch.from_numpy(targets).long(), groups)


def read_columns(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    """Read columns of a Parquet file as lists without missing values.

    Raises:
        ConfigError: If the file is missing, damaged or empty, or a column or value is missing.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns, table = file.schema_arrow.names, file.read(columns=list(names))
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): replace the file, or set data-dir to the folder that"
            " contains it."
        ) from error
    for name in names:
        if name not in columns or table[name].null_count or not len(table):
            raise ConfigError(
                f"{path} has no column {name} with a value in every row: replace the file. It has"
                f" {len(table)} rows and the columns {', '.join(columns)}."
            )
    return {name: table[name].to_pylist() for name in names}


def encoded(path: Path, cells: Sequence[Any], column: str = "image") -> list[BytesIO]:
    """Return the encoded images in the cells of a column.

    Raises:
        ConfigError: If a cell has no bytes.
    """
    files = []
    for row, cell in enumerate(cells):
        content = cell.get("bytes") if isinstance(cell, dict) else None
        if not isinstance(content, bytes):
            raise ConfigError(
                f"{path}, row {row}: the column {column} has no image (a struct with bytes):"
                " replace the file."
            )
        files.append(BytesIO(content))
    return files


def decode(
    files: Sequence[Path | BytesIO], names: Sequence[str], mode: Mode, shape: tuple[int, int]
) -> Tensor:
    """Decode JPEG or PNG images into one tensor.

    Args:
        files: The encoded images.
        names: The name of each file in error messages.
        mode: The mode that images are converted to.
        shape: The height and width that every image must have.

    Returns:
        uint8 `[n, channels, height, width]`, with one channel for "L" and three for "RGB".

    Raises:
        ConfigError: If a file is missing or damaged, or an image has another size.
    """
    from PIL import Image

    images = np.empty((len(files), len(mode), *shape), dtype=np.uint8)
    for place, (file, name) in enumerate(zip(files, names, strict=True)):
        try:
            with Image.open(file) as image:
                width, height = image.size
                if (height, width) != shape:  # before decoding: a small file can claim a huge size
                    raise ConfigError(
                        f"{name} has {height}x{width} pixels, not {shape[0]}x{shape[1]}: use the"
                        " original data."
                    )
                pixels: npt.NDArray[np.uint8] = np.asarray(image.convert(mode))
        except ConfigError:
            raise
        # Pillow raises many types for a damaged file, even SyntaxError.
        except Exception as error:
            raise ConfigError(
                f"{name} cannot be read as an image ({error}): download the data again."
            ) from error
        images[place] = pixels.reshape(*shape, len(mode)).transpose(2, 0, 1)
    return torch.from_numpy(images)
