"""CamVid: street scenes filmed from a car, with one of 11 classes for every pixel.

G. J. Brostow, J. Fauqueur, R. Cipolla, "Semantic object classes in video: A high-definition ground
truth database", Pattern Recognition Letters 2009, https://doi.org/10.1016/j.patrec.2008.04.005,
with the classes and the split of V. Badrinarayanan, A. Kendall, R. Cipolla, "SegNet", TPAMI 2017,
https://arxiv.org/abs/1511.00561. The 101 images of the validation part are not used.

Read, at 240x180 pixels, from the Parquet files `train.parquet` and `test.parquet` with the columns
`image`, `mask` (a class for each pixel, 11 for none) and `sequence` (the recording).
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

CLASSES = 11
VOID = 11  # what the files hold for pixels without a class
SIZE = (180, 240)  # height and width
PART = 20  # frames; a recording is divided into equal parts, as near to this length as can be


def load(data_dir: Path | None) -> tuple[Split, Split]:
    """367 training and 233 test images; the training images' groups are parts of the recordings.

    A recording is what a client has by nature, but there are only three. So the frames of each, in
    the order of time, are divided into parts of about 20: recordings 0001TP, 0006R0 and 0016E5 make
    groups 0 to 2, 3 to 7 and 8 to 17.

    Args:
        data_dir: the folder with the two files, or with a folder `camvid-240x180` that holds them.
            None is `~/.cache/fixbn-flwr`.

    Raises:
        ConfigError: a file is missing, damaged or not this data set.
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
            f" {CLASSES - 1}, and {VOID} is none; put masks with these 11 classes there."
        )
    masks[masks == VOID] = IGNORED
    return Split(images, masks[:, 0], _parts(columns["sequence"]))


def _parts(recordings: list[str]) -> Tensor:
    """The number of each frame's part, counted over all recordings, int64 `[n]`."""
    number = itertools.count()
    groups: list[Tensor] = []
    for _, frames in itertools.groupby(recordings):
        length = sum(1 for _ in frames)
        for part in torch.arange(length).tensor_split(max(1, round(length / PART))):
            groups.append(torch.full((len(part),), next(number)))
    return torch.cat(groups)


TASK = Task(
    name="camvid",
    classes=CLASSES,
    load=load,
    models={"deeplabv3plus": partial(deeplab, classes=CLASSES)},
    mean=(104.90, 108.28, 110.19),
    std=(77.03, 78.07, 77.01),
    augment=None,
    loss=pixel_cross_entropy,
    metric=partial(mean_iou, CLASSES),
    masks=Masks(crop=(160, 208), window=(192, 240), evaluation_batch=32),
)
