"""Images and masks in folders as a task: values and classes, and a federation on them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import DataOptions, Split, Task, get_task, load_splits
from tests.support.image_trees import CAMVID, write_scenes
from tests.support.whole_app import rounds_of, run_app


@pytest.fixture
def scenes(shared_data: Path, tmp_path: Path) -> Path:
    """A folder with 4 training and 2 test scenes; in CamVid's masks, 11 is no class."""
    folder = tmp_path / "scenes"
    write_scenes(shared_data, folder / "train", "train", 4)
    write_scenes(shared_data, folder / "test", "test", 2)
    (folder / "classes.txt").write_text("\n".join([*CAMVID, "- = 11"]))
    return folder


def task_and_splits(folder: Path, **options: object) -> tuple[Task, Split, Split]:
    task = get_task("folder-segmentation", DataOptions(folder, **options))  # type: ignore[arg-type]
    return task, *load_splits(task, folder)


def test_scenes_are_those_of_the_built_in_task(scenes: Path, shared_data: Path) -> None:
    task, train, test = task_and_splits(scenes)
    expected, _ = load_splits(get_task("camvid"), shared_data)
    assert task.class_names == CAMVID
    assert torch.equal(train.images[:], expected.images[:4])
    assert torch.equal(train.targets[:], expected.targets[:4])
    assert len(test) == 2


def test_images_and_masks_are_resized_alike(scenes: Path) -> None:
    _, train, _ = task_and_splits(scenes, image_size=90)
    _, whole, _ = task_and_splits(scenes)
    assert train.images[:].shape == (4, 3, 90, 90)
    # The center of 240x180 pixels, and of each 2x2 of them one.
    center = whole.targets[:][:, :, 30:210]
    candidates = center.reshape(4, 90, 2, 90, 2).permute(0, 1, 3, 2, 4).flatten(3)
    assert (candidates == train.targets[:].unsqueeze(-1)).any(-1).all()
    means = whole.images[:].float()[..., 30:210].reshape(4, 3, 90, 2, 90, 2).mean((3, 5))
    assert (means - train.images[:]).abs().mean() < 4  # the smoother filter of a reduction


@pytest.fixture
def binary(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes ten images and masks with a tumour in a corner."""

    def write(classes: str, value: int, mode: str = "L") -> Path:
        folder = tmp_path / f"binary-{mode}-{value}-{len(classes)}"
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        mask = np.zeros((20, 30), np.uint8)
        mask[:5, :6] = value
        for number in range(10):
            Image.new("L", (30, 20), number).save(folder / "images" / f"{number}.png")
            image = Image.fromarray(mask)
            if mode == "P":
                image.putpalette([200, 10, 10, 0, 0, 0, 30, 30, 30])
            elif mode == "1":
                image = Image.fromarray(mask.astype(bool))
            elif mode == "RGB":
                image = image.convert("RGB")
            image.save(folder / "masks" / f"{number}.png")
        (folder / "classes.txt").write_text(classes)
        return folder

    return write


@pytest.mark.parametrize(
    ("classes", "value", "mode"),
    [
        ("healthy\ntumour\n", 1, "L"),
        ("healthy\ntumour\n", 1, "P"),
        ("healthy\ntumour\n", 1, "1"),
        ("healthy\ntumour = 255\n", 255, "L"),
        ("healthy = 0\ntumour=7", 7, "L"),
    ],
)
def test_values_become_the_numbers_of_the_classes(
    binary: Callable[..., Path], classes: str, value: int, mode: str
) -> None:
    task, train, test = task_and_splits(binary(classes, value, mode))
    assert task.class_names == ("healthy", "tumour")
    assert (len(train), len(test)) == (8, 2)
    assert train.targets[:].flatten(1).sum(1).tolist() == [30] * 8
    assert train.targets[:][:, :5, :6].min() == 1
    _, scaled, _ = task_and_splits(binary(classes + "\n", value, mode), image_size=40)
    assert (
        scaled.targets[:].flatten(1).sum(1).tolist() == [20] * 8
    )  # 5 of its 6 columns are cut off


@pytest.mark.parametrize(
    ("classes", "value", "mode", "message"),
    [
        ("healthy\ntumour\n", 255, "L", "255 and no pixel of tumour: .* write 'tumour = 255' in"),
        ("healthy\ntumour\n", 9, "L", "the value 9, which is no class .* line there, such as 'NA"),
        ("healthy\ntumour\n", 1, "RGB", "has the mode RGB: save masks with one channel of 8 bits"),
        ("healthy\ntumour = x\n", 1, "L", "has the line 'tumour = x': write NAME, or NAME = VALUE"),
        ("healthy\ntumour = 0\n", 1, "L", "has a class or a value twice: give each class its own"),
        ("healthy\ntumour = 256\n", 1, "L", "2 classes with values from 0 to 256: use at most 254"),
        ("\n", 1, "L", "classes.txt names no class: write the name of a class on each line"),
        ("tumour = 1\n- = 0\n", 1, "L", r"has 1 classes \(tumour\): two or more are needed"),
    ],
)
def test_wrong_values_are_refused(
    binary: Callable[..., Path], classes: str, value: int, mode: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        task_and_splits(binary(classes, value, mode))


def test_hidden_images_and_masks_are_left_out(scenes: Path) -> None:
    for name in ("images", "masks"):
        hidden = scenes / "test" / name / ".ipynb_checkpoints"
        hidden.mkdir()
        for path in (scenes / "test" / name).glob("1.*"):
            path.rename(hidden / path.name)
    assert len(task_and_splits(scenes)[2]) == 1


def test_missing_files_are_refused(scenes: Path) -> None:
    mask = scenes / "train" / "masks" / "2.png"
    Image.new("L", (10, 10)).save(mask)
    with pytest.raises(
        ConfigError, match=r"2.png has 10x10 pixels and its image 180x240: they .* size. Replace"
    ):
        task_and_splits(scenes)
    mask.unlink()
    with pytest.raises(ConfigError, match=rf"2.jpg has no mask: put one .* such as {mask}"):
        task_and_splits(scenes)
    (scenes / "classes.txt").unlink()
    with pytest.raises(ConfigError, match=r"has no classes.txt: write one with the name of a cla"):
        task_and_splits(scenes, seed=1)


def test_a_federation_trains_with_balanced_classes(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    run_config = {
        "task": "folder-segmentation",
        "data-dir": str(scenes),
        "image-size": 64,
        "partition": "iid",
        "batch-size": 2,
        "local-steps": 1,
        "num-server-rounds": 1,
        "freeze-after": 1.0,
        "class-weights": "balanced",
        "model": "torchvision:lraspp_mobilenet_v3_large",
    }
    (only,) = rounds_of(run_app(tmp_path / "runs", 2, run_config))
    assert np.isfinite(only["test_loss"])
