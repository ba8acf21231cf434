"""The trained model: its attributes, and predictions equal to the tests during the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fixbn_flwr.app.inference.loading import load
from fixbn_flwr.app.inference.trained_model import TrainedModel
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits, normalise
from fixbn_flwr.tasks.signature import Signature
from tests.support.whole_app import rounds_of

SIGNATURE = Signature(("cat", "dog"), (3, 2, 2), (51.0, 102.0, 0.0), (25.5, 51.0, 255.0), 255)


def model_with(network: nn.Module, signature: Signature = SIGNATURE) -> TrainedModel:
    return TrainedModel(network, signature)


def test_it_is_a_module_in_evaluation_mode_with_attributes() -> None:
    model = model_with(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)))
    assert isinstance(model, nn.Module)
    assert not any(module.training for module in model.modules())
    assert model.class_names == ("cat", "dog")
    assert model.input_size == (3, 2, 2)
    assert model.mean == pytest.approx((0.2, 0.4, 0))
    assert model.std == pytest.approx((0.1, 0.2, 1))


def test_forward_normalises() -> None:
    images = torch.tensor([0.3, 0.8, 0.5]).view(1, 3, 1, 1)
    assert model_with(nn.Flatten())(images)[0].tolist() == pytest.approx([1, 2, 0.5])


def test_every_stored_pixel_gives_the_bits_of_training() -> None:
    task = get_task("cifar10")
    stored = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    signature = Signature(task.class_names, (3, 16, 16), task.mean, task.std, task.white)
    model = TrainedModel(nn.Identity(), signature)
    assert torch.equal(model(stored / 255), normalise(task, stored))


@pytest.mark.parametrize("which", ["best", "final"])
def test_predictions_have_the_accuracy_that_the_run_recorded(run_folder: Path, which: str) -> None:
    _, test = load_splits(get_task("digits"))
    rounds = rounds_of(run_folder)
    best = max(rounds, key=lambda line: line["validation_accuracy"])
    expected = (best if which == "best" else rounds[-1])["test_accuracy"]
    predictions = load(run_folder, which).predict(test.images[:].numpy())
    right = [int(p.label) == target for p, target in zip(predictions, test.targets, strict=True)]
    assert np.mean(right) == pytest.approx(expected, abs=1e-7)
    assert expected > 0.2


def test_files_give_the_predictions_of_the_stored_pixels(run_folder: Path, tmp_path: Path) -> None:
    _, test = load_splits(get_task("digits"))
    model = load(run_folder)
    (stored,) = model.predict([test.images[:1][0].numpy()])
    image = Image.fromarray((test.images[:1][0, 0].numpy() * 15.9375).round().astype(np.uint8))
    image.save(tmp_path / "digit.png")
    of_image, of_file = model.predict([image, tmp_path / "digit.png"])
    assert of_image == of_file
    assert of_file.label == stored.label
    assert of_file.probability == pytest.approx(stored.probability, abs=0.01)


def test_a_prediction_lists_all_classes_the_most_probable_first() -> None:
    class Fixed(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 3.0]]).log1p().repeat(len(images), 1)  # log 1 and log 4

    first, second = model_with(Fixed()).predict([Image.new("RGB", (2, 2))] * 2)
    assert first == second
    assert first.classes == (("dog", pytest.approx(0.8)), ("cat", pytest.approx(0.2)))
    assert (first.label, first.probability) == ("dog", pytest.approx(0.8))


def test_many_images_are_predicted_as_one_at_a_time(run_folder: Path) -> None:
    train, _ = load_splits(get_task("digits"))
    model, images = load(run_folder), train.images[:205].numpy()
    together = model.predict(images)
    assert len(together) == 205
    (alone,) = model.predict(images[204:])
    assert together[204].label == alone.label
    assert together[204].probability == pytest.approx(alone.probability, abs=1e-5)
    assert model.predict([]) == []


def test_predict_evaluates_even_after_train(run_folder: Path) -> None:
    _, test = load_splits(get_task("digits"))
    model = load(run_folder)
    expected = model.predict(test.images[:2].numpy())
    model.train()
    assert model.predict(test.images[:2].numpy()) == expected


@pytest.mark.parametrize("one", ["image.png", Path("image.png"), Image.new("L", (8, 8))])
def test_one_image_instead_of_several_is_refused(one: object) -> None:
    with pytest.raises(ConfigError, match=r"predict takes several images, not .*predict\(\[image"):
        model_with(nn.Flatten()).predict(one)  # type: ignore[arg-type]


def test_a_model_of_pixels_refuses_predict_and_says_what_to_call() -> None:
    model = TrainedModel(nn.Identity(), SIGNATURE, per_pixel=True)
    with pytest.raises(ConfigError, match=r"call model\(images\)\.argmax\(1\)"):
        model.predict([Image.new("RGB", (2, 2))])


def test_the_run_recorded_the_signature(run_folder: Path) -> None:
    recorded = json.loads((run_folder / "config.json").read_text())["signature"]
    assert Signature.from_json(recorded) == load(run_folder).signature
    assert recorded["input_size"] == [1, 8, 8]
