"""FEMNIST: classification of handwritten digits and letters of many writers into 62 classes.

S. Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018,
https://arxiv.org/abs/1812.01097, made from NIST Special Database 19. With `partition=natural` each
client is one writer, or several writers if there are fewer clients.

The data are two Parquet files, `train.parquet` and `test.parquet`, with the columns `image` (grey,
28x28 pixels), `character` (0 to 9 digits, 10 to 35 capitals, 36 to 61 small letters) and
`writer_id`.
"""

from __future__ import annotations

import string
from functools import partial
from pathlib import Path

from torch.nn.functional import cross_entropy

from fixbn_flwr.models.small_resnet import small_resnet
from fixbn_flwr.tasks.images import find_folder, read_parquet
from fixbn_flwr.tasks.metrics import Accuracy
from fixbn_flwr.tasks.task import Split, Task

CLASSES = tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """Load all training and test images. The training images are grouped by writer.

    Args:
        data_dir: The folder with the two files, or with a folder `femnist-small` that has them.
            Default: `~/.cache/fixbn-flwr`.

    Raises:
        ConfigError: If a file is missing, damaged or not this data set.
    """
    folder = find_folder(data_dir, ["femnist-small"], ["train.parquet"])
    read = partial(read_parquet, mode="L", size=28, label="character", classes=len(CLASSES))
    return read(folder / "train.parquet", group="writer_id"), read(folder / "test.parquet")


TASK = Task(
    name="femnist",
    classes=len(CLASSES),
    load=load,
    models={"small-resnet": partial(small_resnet, classes=len(CLASSES))},
    mean=(245.43,),
    std=(41.37,),
    augment=None,
    loss=cross_entropy,
    metric=Accuracy,
    class_names=CLASSES,
)
