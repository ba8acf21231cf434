"""FEMNIST: its real files, and clients by writer."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits, normalise
from fixbn_flwr.tasks.femnist import load
from fixbn_flwr.tasks.partition import partition
from tests.support.whole_app import rounds_of, run_app


def test_femnist_has_the_expected_splits(shared_data: Path) -> None:
    task = get_task("femnist")
    train, test = load_splits(task, shared_data)
    assert train.images.shape == (7_482, 1, 28, 28)
    assert test.images.shape == (858, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert train.images[0, 0, 14, 10:14].tolist() == [252, 255, 173, 0]
    assert train.targets[:8].tolist() == [1, 2, 3, 2, 9, 4, 4, 3]
    assert len(train.targets.bincount()) == len(test.targets.bincount()) == 62

    images = normalise(task, train.images)
    assert images.mean().abs() < 1e-3
    assert (images.std() - 1).abs() < 1e-3
    assert task.models["small-resnet"]("bn")(images[:2]).shape == (2, 62)


def test_groups_are_the_writers(shared_data: Path) -> None:
    train, test = load_splits(get_task("femnist"), shared_data)
    assert train.groups is not None
    assert train.groups.bincount()[:4].tolist() == [144, 162, 102, 135]
    assert len(train.groups.bincount()) == 50
    assert test.groups is None
    parts = partition(
        train.targets.numpy(),
        50,
        "natural",
        alpha=1.0,
        classes_per_client=1,
        seed=0,
        groups=train.groups.numpy(),
    )
    assert all((train.groups[part] == writer).all() for writer, part in enumerate(parts))
    assert sum(map(len, parts)) == 7_482


def test_data_dir_may_be_the_folder_itself(shared_data: Path) -> None:
    outside, inside = load(shared_data), load(shared_data / "femnist-small")
    assert torch.equal(outside[0].images, inside[0].images)
    assert torch.equal(outside[1].targets, inside[1].targets)


def test_a_federation_with_ten_writers_per_client_trains(shared_data: Path, tmp_path: Path) -> None:
    run_config = {
        "task": "femnist",
        "data-dir": str(shared_data),
        "partition": "natural",
        "fraction-train": 0.4,
        "num-server-rounds": 2,
        "freeze-after": 1,
    }
    _, last = rounds_of(run_app(tmp_path, 5, run_config))
    assert last["clients"] == 2
    assert last["phase"] == "calibration"
    assert np.isfinite(last["test_loss"])


def test_more_clients_than_writers_are_refused(shared_data: Path, tmp_path: Path) -> None:
    run_config = {"task": "femnist", "data-dir": str(shared_data), "partition": "natural"}
    with pytest.raises(ConfigError, match=r"50 natural clients, fewer than the 51 requested"):
        run_app(tmp_path, 51, run_config)
    assert list(tmp_path.iterdir()) == []
