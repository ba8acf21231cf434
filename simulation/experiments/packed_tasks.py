"""A part of CIFAR-10 in one small file, for machines to which the whole set does not travel.

Use it as `task="simulation.experiments.packed_tasks:CIFAR10"`: the first 25,000 training images and
the first 4,000 test images, from `cifar10-part.parquet` in data-dir (46 MiB), or else from the
whole data set. Both give the same images.

python -m simulation.experiments.packed_tasks DATA_DIR FOLDER    # writes the file
"""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from fixbn_flwr.tasks import Split, load_splits
from fixbn_flwr.tasks.cifar10 import TASK as CIFAR10_WHOLE
from simulation.experiments.held_out_task import choose

FILE = "cifar10-part.parquet"
TRAIN, TEST = 25_000, 4_000  # images
STRIP = 500  # images one above the other; a WebP has at most 16,383 rows of pixels
SIZE = 32  # pixels


def pack(data_dir: Path, folder: Path) -> Path:
    """Write the part of CIFAR-10 in `data_dir` to a file in `folder`, and return its path."""
    rows = [
        {"train": is_train, "strip": _encode(split.images[k : k + STRIP]), "labels": labels}
        for is_train, split in zip((True, False), _part(data_dir), strict=True)
        for k in range(0, len(split), STRIP)
        for labels in [bytes(split.targets[k : k + STRIP].tolist())]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / FILE, compression="none")
    return folder / FILE


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """Load the training and the test images of the part.

    Args:
        data_dir: The folder with the file, or with CIFAR-10 as for the task `cifar10`.

    Raises:
        ConfigError: If there is neither.
    """
    if data_dir is None or not (data_dir / FILE).is_file():
        return _part(data_dir)
    rows = pq.read_table(data_dir / FILE).to_pylist()
    train, test = ([row for row in rows if row["train"] is kept] for kept in (True, False))
    return _split(train), _split(test)


def _part(data_dir: Path | None) -> tuple[Split, Split]:
    train, test = load_splits(CIFAR10_WHOLE, data_dir)
    return choose(train, torch.arange(TRAIN)), choose(test, torch.arange(TEST))


def _encode(images: Tensor) -> bytes:
    """Return uint8 images `[n, 3, 32, 32]` as one lossless WebP."""
    file = io.BytesIO()
    strip = images.permute(0, 2, 3, 1).reshape(-1, SIZE, 3).numpy()
    Image.fromarray(strip).save(file, "WEBP", lossless=True, quality=50)
    return file.getvalue()


def _split(rows: list[dict[str, bytes]]) -> Split:
    strips = [np.asarray(Image.open(io.BytesIO(row["strip"]))) for row in rows]
    images = torch.from_numpy(np.concatenate(strips)).reshape(-1, SIZE, SIZE, 3)
    labels = torch.tensor([label for row in rows for label in row["labels"]])
    return Split(images.permute(0, 3, 1, 2).contiguous(), labels)


CIFAR10 = replace(CIFAR10_WHOLE, name="cifar10-part", load=load)

if __name__ == "__main__":
    print(pack(*map(Path, sys.argv[1:])))
