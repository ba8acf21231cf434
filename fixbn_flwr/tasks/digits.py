"""Handwritten digits: a task without a download that trains on a CPU in seconds.

1,797 grey images of 8x8 pixels with values 0 to 16, in 10 classes. They come with scikit-learn and
are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998,
https://doi.org/10.24432/C50P49).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from fixbn_flwr.models.small_resnet import small_resnet
from fixbn_flwr.tasks.task import Split, Task, accuracy


def load(_data_dir: Path | None) -> tuple[Split, Split]:
    """Load 1,437 training and 360 test images, always the same, stratified by class.

    Args:
        _data_dir: Unused: scikit-learn contains the data.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, targets = load_digits(return_X_y=True)
    parts = train_test_split(images, targets, test_size=360, stratify=targets, random_state=0)
    train_images, test_images, train_targets, test_targets = map(torch.from_numpy, parts)
    return (
        Split(train_images.to(torch.uint8).view(-1, 1, 8, 8), train_targets.long()),
        Split(test_images.to(torch.uint8).view(-1, 1, 8, 8), test_targets.long()),
    )


TASK = Task(
    name="digits",
    classes=10,
    load=load,
    models={"small-resnet": small_resnet},
    mean=(4.8861,),
    std=(6.0179,),
    augment=None,
    loss=cross_entropy,
    metric=partial(accuracy, 10),
)
