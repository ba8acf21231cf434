"""The digits: sizes, the fixed split, and normalised images."""

import numpy as np
import pytest
import torch

from fixbn_flwr.tasks import get_task, load_splits, normalise
from fixbn_flwr.tasks.digits import stratified_split


def test_the_digits_have_the_expected_splits() -> None:
    train, test = load_splits(get_task("digits"))
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    assert train.images.dtype == torch.uint8
    assert train.images.max() == 16
    assert train.targets.dtype == torch.int64
    assert train.targets.bincount().tolist() == [142, 146, 142, 146, 145, 145, 145, 143, 139, 144]
    assert test.targets.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert train.targets[:10].tolist() == [3, 9, 1, 3, 1, 9, 4, 4, 2, 8]


def test_the_split_equals_scikit_learns() -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, targets = load_digits(return_X_y=True)
    parts = train_test_split(pixels, targets, test_size=360, stratify=targets, random_state=0)
    train, test = load_splits(get_task("digits"))
    for split, images, labels in ((train, parts[0], parts[2]), (test, parts[1], parts[3])):
        assert torch.equal(split.images.reshape(len(split), -1).double(), torch.from_numpy(images))
        assert torch.equal(split.targets, torch.from_numpy(labels))


@pytest.mark.parametrize(("size", "seed"), [(3, 0), (10, 1), (25, 7)])
def test_any_stratified_split_equals_scikit_learns(size: int, seed: int) -> None:
    from sklearn.model_selection import train_test_split

    targets = np.random.default_rng(seed).integers(3, size=47)
    rows = np.arange(47)
    expected = train_test_split(rows, test_size=size, stratify=targets, random_state=seed)
    for ours, theirs in zip(stratified_split(targets, size, seed), expected, strict=True):
        assert ours.tolist() == theirs.tolist()


def test_training_images_are_normalised() -> None:
    task = get_task("digits")
    images = normalise(task, load_splits(task)[0].images)
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_the_default_model_accepts_the_images() -> None:
    task = get_task("digits")
    images = load_splits(task)[1].images[:4]
    build = next(iter(task.models.values()))
    assert build("bn")(normalise(task, images)).shape == (4, task.classes)
