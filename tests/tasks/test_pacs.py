"""PACS: its real files, and a federation in which each client is a domain."""

from pathlib import Path

import numpy as np
import torch

from fixbn_flwr.tasks import get_task, load_splits, normalise
from tests.support.whole_app import rounds_of, run_app


def test_pacs_has_the_expected_splits(shared_data: Path) -> None:
    task = get_task("pacs")
    train, test = load_splits(task, shared_data)
    assert train.images.shape == (1_400, 3, 64, 64)
    assert test.images.shape == (420, 3, 64, 64)
    assert train.images.dtype == torch.uint8
    assert train.images[0, :, 0, 0].tolist() == [252, 107, 14]
    assert train.targets.bincount().tolist() == [200] * 7
    assert test.targets.bincount().tolist() == [60] * 7
    assert train.groups is not None
    assert train.groups.bincount().tolist() == [350] * 4
    assert test.groups is None

    images = normalise(task, train.images)
    assert images.mean((0, 2, 3)).abs().max() < 1e-3
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert task.models["resnet20"]("bn")(images[:2]).shape == (2, 7)
    # Sketches are black on white, photos are not.
    brightness = [images[train.groups == domain].mean().item() for domain in range(4)]
    assert max(brightness) == brightness[3]
    assert min(brightness) in (brightness[0], brightness[2])


def test_a_federation_of_domains_trains(shared_data: Path, tmp_path: Path) -> None:
    run_config = {
        "task": "pacs",
        "data-dir": str(shared_data),
        "partition": "natural",
        "fraction-train": 0.5,
        "local-steps": 1,
        "num-server-rounds": 1,
        "freeze-after": 1.0,
    }
    (only,) = rounds_of(run_app(tmp_path, 4, run_config))
    assert only["clients"] == 2
    assert np.isfinite(only["test_loss"])
