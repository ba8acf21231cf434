"""Handwritten digits: a task without a download that trains on a CPU in seconds.

1,797 grey images of 8x8 pixels with values 0 to 16, in 10 classes. They come with scikit-learn and
are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998,
https://doi.org/10.24432/C50P49).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.small_resnet import small_resnet
from fixbn_flwr.tasks.metrics import Accuracy
from fixbn_flwr.tasks.task import Split, Task

TEST_IMAGES = 360

Integers = npt.NDArray[np.int64]


def load(_data_dir: Path | None) -> tuple[Split, Split]:
    """Load 1,437 training and 360 test images, always the same, stratified by class.

    The file is read without importing scikit-learn, which takes longer than a round.

    Args:
        _data_dir: Unused: scikit-learn contains the data.

    Raises:
        ConfigError: If scikit-learn is not installed.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ConfigError(
            "task is 'digits', whose data come with scikit-learn: install the app's packages with "
            '`pip install "fixbn-flwr[app]"`.'
        )
    table = np.loadtxt(
        Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", np.uint8, delimiter=","
    )
    images = torch.from_numpy(table[:, :-1].copy()).view(-1, 1, 8, 8)
    targets = table[:, -1].astype(np.int64)
    train, test = stratified_split(targets, TEST_IMAGES, seed=0)
    labels = torch.from_numpy(targets)
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def stratified_split(targets: Integers, test_size: int, seed: int) -> tuple[Integers, Integers]:
    """Return the training and test rows of scikit-learn's stratified ``train_test_split``.

    Args:
        targets: The class of each row, int64 `[n]`, counted from 0.
        test_size: The number of test rows.
        seed: Its ``random_state``.
    """
    random = np.random.RandomState(seed)
    counts = np.bincount(targets)
    numbers = []
    taken = np.zeros_like(counts)
    for size in (len(targets) - test_size, test_size):
        left = counts - taken
        shares = left / left.sum() * size
        number = np.floor(shares).astype(np.int64)
        for value in np.unique(shares - number)[::-1]:  # the largest remainders are rounded up
            missing = size - number.sum()
            if missing == 0:
                break
            (candidates,) = np.where(shares - np.floor(shares) == value)
            chosen = random.choice(candidates, min(len(candidates), missing), replace=False)
            number[chosen] += 1
        numbers.append(number)
        taken = taken + number
    train: list[int] = []
    test: list[int] = []
    for label, (of_train, of_test) in enumerate(zip(*numbers, strict=True)):
        rows = np.flatnonzero(targets == label)[random.permutation(counts[label])]
        train += rows[:of_train].tolist()
        test += rows[of_train : of_train + of_test].tolist()
    return random.permutation(train), random.permutation(test)


TASK = Task(
    name="digits",
    classes=10,
    load=load,
    models={"small-resnet": small_resnet},
    mean=(4.8861,),
    std=(6.0179,),
    augment=None,
    loss=cross_entropy,
    metric=Accuracy,
    white=16,
)
