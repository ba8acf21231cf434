"""The digits: sizes, the fixed split, and what they are normalised to."""

import pytest
import torch

from fixbn_flwr.tasks import get_task, load_splits, normalise


def test_splits() -> None:
    train, test = load_splits(get_task("digits"))
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    assert train.images.dtype == torch.uint8
    assert train.images.max() == 16
    assert train.targets.dtype == torch.int64
    assert train.targets.bincount().tolist() == [142, 146, 142, 146, 145, 145, 145, 143, 139, 144]
    assert test.targets.bincount().tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert train.targets[:10].tolist() == [3, 9, 1, 3, 1, 9, 4, 4, 2, 8]


def test_normalised_training_images() -> None:
    task = get_task("digits")
    images = normalise(task, load_splits(task)[0].images)
    assert images.mean().item() == pytest.approx(0, abs=1e-4)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_default_model_fits() -> None:
    task = get_task("digits")
    images = load_splits(task)[1].images[:4]
    build = next(iter(task.models.values()))
    assert build("bn")(normalise(task, images)).shape == (4, task.classes)
