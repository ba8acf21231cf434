"""CamVid: segmentation of street scenes, filmed from a car, into 11 classes.

G. J. Brostow, J. Fauqueur, R. Cipolla, "Semantic object classes in video: A high-definition ground
truth database", Pattern Recognition Letters 2009, https://doi.org/10.1016/j.patrec.2008.04.005,
with the classes and split of V. Badrinarayanan, A. Kendall, R. Cipolla, "SegNet", TPAMI 2017,
https://arxiv.org/abs/1511.00561. The 101 validation images are not used.

The data are two Parquet files, `train.parquet` and `test.parquet`, of 240x180 pixels, with the
columns `image`, `mask` (the class of each pixel, 11 for none) and `sequence` (the recording).
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.deeplab import deeplab
from fixbn_flwr.tasks.images import decode, encoded, find_folder, read_columns
from fixbn_flwr.tasks.segmentation import IGNORED, Masks, mean_iou, pixel_cross_entropy
from fixbn_flwr.tasks.task import Split, Task

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign or symbol", "fence", "car",
    "pedestrian", "bicyclist",
)  # fmt: skip
VOID = 11  # the files' value for pixels without a class
SIZE = (180, 240)  # height and width
PART = 20  # frames; each recording is divided into equal parts of about this length


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """Load 367 training and 233 test images, grouped by parts of the recordings.

    A recording is a natural client, but there are only three. So the frames of each recording are
    divided, in order of time, into parts of about 20 frames: recordings 0001TP, 0006R0 and 0016E5
    become groups 0 to 2, 3 to 7 and 8 to 17.

    Args:
        data_dir: The folder with the two files, or with a folder `camvid-240x180` that has them.
            Default: `~/.cache/fixbn-flwr`.

    Raises:
        ConfigError: If a file is missing, damaged or not this data set.
    """
    folder = find_folder(data_dir, ["camvid-240x180"], ["train.parquet"])
    return _read(folder / "train.parquet"), _read(folder / "test.parquet")


def _read(path: Path) -> Split:
    columns = read_columns(path, ["image", "mask", "sequence"])
    rows = [f"{path}, row {row}" for row in range(len(columns["image"]))]
    images = decode(encoded(path, columns["image"]), rows, "RGB", SIZE)
    masks = decode(encoded(path, columns["mask"], "mask"), rows, "L", SIZE)
    if int(masks.max()) > VOID:
        raise ConfigError(
            f"{path} has a mask with the value {int(masks.max())}, but CamVid's classes are 0 to"
            f" {len(CLASSES) - 1}, and {VOID} marks pixels without a class: replace the file."
        )
    masks[masks == VOID] = IGNORED
    return Split(images, masks[:, 0], _parts(columns["sequence"]))


def _parts(recordings: list[str]) -> Tensor:
    """Return the part of each frame, counted over all recordings, int64 `[n]`."""
    number = itertools.count()
    groups: list[Tensor] = []
    for _, frames in itertools.groupby(recordings):
        length = sum(1 for _ in frames)
        for part in torch.arange(length).tensor_split(max(1, round(length / PART))):
            groups.append(torch.full((len(part),), next(number)))
    return torch.cat(groups)


TASK = Task(
    name="camvid",
    classes=len(CLASSES),
    load=load,
    models={"deeplabv3plus": partial(deeplab, classes=len(CLASSES))},
    mean=(104.90, 108.28, 110.19),
    std=(77.03, 78.07, 77.01),
    augment=None,
    loss=pixel_cross_entropy,
    metric=partial(mean_iou, len(CLASSES)),
    masks=Masks(crop=(160, 208), window=(192, 240), evaluation_batch=32),
    class_names=CLASSES,
)
