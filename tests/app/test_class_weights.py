"""Weights of the classes in the training loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy

from fixbn_flwr.app.class_weights import balanced_weights, weighted_task
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import Split, get_task, load_splits
from fixbn_flwr.tasks.segmentation import pixel_cross_entropy
from tests.support.whole_app import rounds_of, run_app

CPU = torch.device("cpu")


def test_weights_are_those_of_scikit_learn() -> None:
    train, _ = load_splits(get_task("digits"))
    expected = compute_class_weight("balanced", classes=np.arange(10), y=train.labels)
    np.testing.assert_allclose(balanced_weights(train, 10), expected, rtol=1e-6)


def test_pixels_are_weighted_by_class_and_those_without_one_not_at_all() -> None:
    masks = torch.tensor([[[0, 0, 0], [0, 1, 255]], [[0, 0, 255], [255, 1, 0]]], dtype=torch.uint8)
    weights = balanced_weights(Split(torch.zeros(2, 3, 2, 3), masks), 4)
    assert weights.tolist() == pytest.approx([9 / 14, 9 / 4, 0, 0])
    outputs = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = cross_entropy(outputs, masks.long(), weights, ignore_index=255)
    assert pixel_cross_entropy(outputs, masks, weights).item() == pytest.approx(expected.item())
    nothing = torch.full_like(masks, 255)
    assert pixel_cross_entropy(outputs, nothing, weights).item() == 0


def test_the_training_loss_is_the_weighted_mean() -> None:
    digits = get_task("digits")
    train, _ = load_splits(digits)
    assert weighted_task(digits, train, "none", CPU) is digits
    weighted = weighted_task(digits, train, "balanced", CPU)
    assert weighted_task(digits, train, "balanced", CPU) is weighted  # CUDA graphs are kept by it
    outputs = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    targets = train.targets[:50]
    expected = cross_entropy(outputs, targets, balanced_weights(train, 10))
    assert torch.equal(weighted.loss(outputs, targets), expected)


def test_a_run_trains_with_them_and_tests_without(tmp_path: Path) -> None:
    config: dict[str, Any] = {"num-server-rounds": 1, "freeze-after": 1.0}
    plain = rounds_of(run_app(tmp_path / "plain", 4, config))[0]
    config["class-weights"] = "balanced"
    weighted = rounds_of(run_app(tmp_path / "weighted", 4, config))[0]
    assert weighted["train_loss"] == pytest.approx(plain["train_loss"], rel=0.1)
    assert weighted["train_loss"] != plain["train_loss"]


def test_a_loss_without_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unweighted.py").write_text(
        "from dataclasses import replace; from fixbn_flwr.tasks import get_task\n"
        "TASK = replace(get_task('digits'), loss=lambda outputs, targets: outputs.sum())"
    )
    with pytest.raises(
        ConfigError, match="the loss of task unweighted:TASK takes no class weights; give it an"
    ):
        Settings.from_run_config({"task": "unweighted:TASK", "class-weights": "balanced"})
