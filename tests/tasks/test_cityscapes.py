"""Cityscapes: a small folder of real street scenes in its layout, and a federation on it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from fixbn_flwr.app.workbench import workbench
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.averaging import Kind, kind_of
from fixbn_flwr.tasks import get_task, normalise
from fixbn_flwr.tasks.camvid import load as load_camvid
from fixbn_flwr.tasks.cityscapes import CLASSES, TRAIN_IDS, load
from fixbn_flwr.tasks.segmentation import IGNORED
from tests.support.whole_app import rounds_of, run_app

SIZE = (32, 48)  # height and width, small for quick training
# Cityscapes' label ids of CamVid's classes 0 to 10.
LABEL_IDS = np.zeros(256, np.uint8)
LABEL_IDS[:11] = [23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 33]


def save(folder: Path, split: str, city: str, number: int, image: Any, mask: Any) -> None:
    name = f"{city}_{number:06}_000019"
    for kind, ending, pixels in (
        ("leftImg8bit", "leftImg8bit", image),
        ("gtFine", "gtFine_labelIds", mask),
    ):
        place = folder / kind / split / city
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{name}_{ending}.png")


@pytest.fixture(scope="module")
def street_scenes(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write CamVid's recordings as cities: 4, 3 and 5 training images, and 3 test images."""
    folder = tmp_path_factory.mktemp("cityscapes")
    train, test = load_camvid(shared_data)
    chosen = {
        ("train", "bochum"): (train, range(0, 60, 15)),
        ("train", "aachen"): (train, range(70, 160, 30)),
        ("train", "zurich"): (train, range(170, 360, 40)),
        ("val", "lindau"): (test, range(70, 220, 50)),
    }
    for (split, city), (data, places) in chosen.items():
        for place in places:
            image = data.images[torch.tensor([place])][0].permute(1, 2, 0).numpy()
            mask = LABEL_IDS[data.targets[torch.tensor([place])][0].numpy()]
            small = [
                np.asarray(Image.fromarray(pixels).resize(SIZE[::-1], resampling))
                for pixels, resampling in (
                    (image, Image.Resampling.BILINEAR),
                    (mask, Image.Resampling.NEAREST),
                )
            ]
            save(folder, split, city, place, *small)
    return folder


def test_train_ids_are_those_of_torchvision() -> None:
    from torchvision.datasets import Cityscapes

    official = {c.id: c for c in Cityscapes.classes if c.id >= 0}
    scored = {c.name: c.id for c in official.values() if not c.ignore_in_eval}
    assert list(CLASSES.items()) == sorted(scored.items(), key=lambda item: item[1])
    for label_id, entry in official.items():
        expected = entry.train_id if entry.train_id < len(CLASSES) else IGNORED
        assert TRAIN_IDS[label_id] == expected, entry.name
    assert (TRAIN_IDS[34:] == IGNORED).all()


def test_small_files_have_the_expected_splits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (4, 2, 3, 3), dtype=np.uint8)
    masks = np.array([[[0, 7, 8], [33, 34, 255]]] * 4, dtype=np.uint8)
    masks[:, 0, 0] = [23, 24, 25, 26]
    for split, city, number in [
        ("train", "ulm", 1), ("train", "bonn", 7), ("train", "bonn", 2), ("val", "ulm", 3)
    ]:  # fmt: skip
        save(tmp_path, split, city, number, images[number % 4], masks[number % 4])
    train, test = load(tmp_path)
    assert (len(train), len(test)) == (3, 1)
    assert train.groups is not None
    assert train.groups.tolist() == [0, 0, 1]  # sorted by city, then by name
    order = torch.tensor([2, 0])
    assert torch.equal(train.images[order], torch.from_numpy(images[[1, 2]]).permute(0, 3, 1, 2))
    assert train.targets[order].tolist() == [
        [[11, 0, 1], [18, 255, 255]], [[12, 0, 1], [18, 255, 255]]
    ]  # fmt: skip
    assert train.images[:1].dtype == train.targets[:1].dtype == torch.uint8


def test_a_folder_with_the_name_cityscapes_is_found(street_scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(street_scenes, tmp_path / "cityscapes")
    assert len(load(tmp_path)[0]) == len(load(street_scenes)[0]) == 12


def colour_the_mask(path: Path) -> None:
    Image.open(path).convert("RGB").save(path)


def enlarge(path: Path) -> None:
    Image.open(path).resize((48, 31)).save(path)


@pytest.mark.parametrize(
    ("pattern", "change", "message"),
    [
        ("leftImg8bit/val/*/*", Path.unlink, r"no files .*/leftImg8bit/val/<city>/\*_left.*unpack"),
        ("gtFine/train/aachen/*", Path.unlink, r"3 of 12 images have no mask; .*aachen_000070"),
        ("gtFine/val/*/*120*", lambda path: path.write_bytes(b""), r"120.* cannot be read"),
        ("leftImg8bit/train/bochum/*15*", enlarge, r"15.* has 31x48 pixels .*, not 32x48"),
        ("gtFine/val/*/*120*", colour_the_mask, r"of mode RGB, not 32x48 of mode L: .*label ids"),
    ],
)
def test_invalid_files_are_refused_before_training(
    street_scenes: Path,
    tmp_path: Path,
    pattern: str,
    change: Callable[[Path], Any],
    message: str,
) -> None:
    shutil.copytree(street_scenes, tmp_path / "data")
    paths = list((tmp_path / "data").glob(pattern))
    assert paths
    for path in paths:
        change(path)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "data")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder cityscapes with leftImg8bit .*set data-dir"):
        load(tmp_path)


def test_the_error_names_a_file_that_is_damaged_later(street_scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(street_scenes, tmp_path / "data")
    train, _ = load(tmp_path / "data")
    (path,) = (tmp_path / "data").glob("gtFine/train/zurich/*170*")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ConfigError, match=r"zurich_000170_000019_gtFine_labelIds\.png cannot be"):
        train.targets[:]


def test_a_federation_of_cities_trains_and_reports_exact_scores(
    street_scenes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    config = {
        "task": "cityscapes",
        "data-dir": str(street_scenes),
        "partition": "natural",
        "fraction-train": 1.0,
        "num-server-rounds": 2,
        "freeze-after": 1,
        "local-steps": 1,
        "batch-size": 2,
        "learning-rate": 0.05,
        "validation-share": 0.1,
    }
    folder = run_app(tmp_path / "a", 3, config)
    rounds = rounds_of(folder)
    assert [line["phase"] for line in rounds] == ["exploration", "calibration"]
    assert [(line["clients"], line["dropped"]) for line in rounds] == [(3, 0)] * 2
    assert all(0 < line["train_loss"] < 2 * math.log(19) for line in rounds)

    # Recompute the reported loss and score of the last model without windows.
    final = load_file(folder / "final.safetensors")
    bench = workbench(get_task("cityscapes"), "deeplabv3plus", "bn", 0.9, 0.001, "cpu")
    bench.load(final)
    _, test = load(street_scenes)
    images, truth = normalise(get_task("cityscapes"), test.images[:]), test.targets[:].long()
    with torch.inference_mode():
        outputs = bench.model.eval()(images)
    known = truth != IGNORED
    guess, truth, logs = outputs.argmax(1)[known], truth[known], outputs.log_softmax(1)
    iou = [
        ((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum()
        for c in range(19)
        if ((guess == c) | (truth == c)).any()
    ]
    losses = -logs.permute(0, 2, 3, 1)[known].gather(1, truth[:, None])
    assert rounds[1]["test_accuracy"] == pytest.approx(float(sum(iou) / len(iou)), rel=1e-4)
    assert rounds[1]["test_loss"] == pytest.approx(float(losses.mean()), rel=1e-4)
    scores = [line["validation_by_client"] for line in rounds]
    assert [[*by_city] for by_city in scores] == [["0", "1", "2"]] * 2
    # A city holds out one image, so each counts the same.
    means = [pytest.approx(sum(by_city.values()) / 3) for by_city in scores]
    assert [line["validation_accuracy"] for line in rounds] == means
    best = json.loads((folder / "summary.json").read_text())["best_validation"]
    assert best == max(line["validation_accuracy"] for line in rounds)

    # Round 2 trains only parameters.
    until_freeze = run_app(tmp_path / "b", 3, config | {"num-server-rounds": 1})
    at_freeze = load_file(until_freeze / "final.safetensors")
    for name, array in final.items():
        moved = array.tobytes() != at_freeze[name].tobytes()
        assert moved == (kind_of(name) is Kind.PARAMETER), name


def test_an_unsupported_norm_is_refused_before_the_run_folder_is_created(
    street_scenes: Path, tmp_path: Path
) -> None:
    config = {"task": "cityscapes", "partition": "natural", "data-dir": str(street_scenes)}
    with pytest.raises(ConfigError, match="norm is 'none', which DeepLabV3"):
        run_app(tmp_path / "runs", 3, config | {"norm": "none", "freeze-after": 1.0})
    assert not (tmp_path / "runs").exists()
