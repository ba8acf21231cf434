"""PACS: classification of art paintings, cartoons, photos and sketches into 7 classes.

D. Li, Y. Yang, Y.-Z. Song and T. Hospedales, "Deeper, Broader and Artier Domain Generalization",
ICCV 2017, https://arxiv.org/abs/1710.03077. With `partition=natural` each client is one of the
four domains: the clients have the same classes, but their images look very different.

The data are two Parquet files, `train.parquet` and `test.parquet`, of 64x64 pixels, with the
columns `image`, `label` (0 to 6) and `domain`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch.nn.functional import cross_entropy

from fixbn_flwr.models.resnet20 import resnet20
from fixbn_flwr.tasks.augmentation import crop_and_flip
from fixbn_flwr.tasks.images import find_folder, read_parquet
from fixbn_flwr.tasks.metrics import Accuracy
from fixbn_flwr.tasks.task import Split, Task

CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """Load all training and test images. The training images are grouped by domain.

    Args:
        data_dir: The folder with the two files, or with a folder `pacs-64` that has them. Default:
            `~/.cache/fixbn-flwr`.

    Raises:
        ConfigError: If a file is missing, damaged or not this data set.
    """
    folder = find_folder(data_dir, ["pacs-64"], ["train.parquet"])
    read = partial(read_parquet, mode="RGB", size=64, label="label", classes=len(CLASSES))
    return read(folder / "train.parquet", group="domain"), read(folder / "test.parquet")


TASK = Task(
    name="pacs",
    classes=len(CLASSES),
    load=load,
    models={"resnet20": partial(resnet20, classes=len(CLASSES))},
    mean=(181.35, 174.33, 164.75),
    std=(77.15, 80.16, 87.40),
    augment=crop_and_flip,
    loss=cross_entropy,
    metric=Accuracy,
    class_names=CLASSES,
)
