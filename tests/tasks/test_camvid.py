"""CamVid: its real files, their partition, and the errors without them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import Table, parquet

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits, normalise
from fixbn_flwr.tasks.camvid import load
from fixbn_flwr.tasks.partition import partition
from fixbn_flwr.tasks.segmentation import IGNORED

# From the data's README: the fractions of the 11 classes and of pixels without a class.
SHARES = [0.168, 0.232, 0.010, 0.318, 0.045, 0.097, 0.012, 0.011, 0.059, 0.006, 0.003, 0.040]


def test_camvid_has_the_expected_splits(shared_data: Path) -> None:
    task = get_task("camvid")
    train, test = load_splits(task, shared_data)
    for split, number in ((train, 367), (test, 233)):
        assert isinstance(split.images, torch.Tensor)
        assert isinstance(split.targets, torch.Tensor)
        assert split.images.shape == (number, 3, 180, 240)
        assert split.targets.shape == (number, 180, 240)
        assert split.images.dtype == split.targets.dtype == torch.uint8
    counts = np.bincount(train.targets[:].flatten().numpy(), minlength=256)
    assert counts[[*range(11), IGNORED]] / counts.sum() == pytest.approx(SHARES, abs=6e-4)
    assert counts[11:IGNORED].sum() == 0
    images = normalise(task, train.images[:])
    assert images.mean((0, 2, 3)).abs().max() < 1e-3
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-3


def test_groups_are_consecutive_parts_of_a_recording(shared_data: Path) -> None:
    train, _ = load_splits(get_task("camvid"), shared_data)
    assert train.groups is not None
    assert (train.groups.diff() >= 0).all()
    sizes = train.groups.bincount()
    assert sizes.tolist() == [21, 21, 20, 21, 20, 20, 20, 20, *[21] * 4, *[20] * 6]
    assert sizes[:3].sum() == 62  # 0001TP
    assert sizes[3:8].sum() == 101  # 0006R0
    assert load_splits(get_task("camvid"), shared_data)[1].groups is not None
    parts = partition(
        train.labels, 18, "natural",
        alpha=1.0, classes_per_client=2, seed=0, groups=train.groups.numpy(),
    )  # fmt: skip
    assert [len(part) for part in parts] == sizes.tolist()


def cell(pixels: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": "frame.png"}


def write(path: Path, masks: list[np.ndarray], size: tuple[int, int] = (180, 240)) -> None:
    image = np.zeros((*size, 3), np.uint8)
    columns = {
        "image": [cell(image) for _ in masks],
        "mask": [cell(mask) for mask in masks],
        "sequence": ["one"] * len(masks),
    }
    parquet.write_table(Table.from_pydict(columns), path)


def test_void_pixels_are_ignored(tmp_path: Path) -> None:
    mask = np.full((180, 240), 11, np.uint8)
    mask[0, :2] = 0, 10
    for name in ("train", "test"):
        write(tmp_path / f"{name}.parquet", [mask, mask])
    train, _ = load(tmp_path)
    assert train.targets[:][1, 0, :4].tolist() == [0, 10, IGNORED, IGNORED]
    assert train.groups is not None
    assert train.groups.tolist() == [0, 0]


def test_a_mask_with_an_unknown_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [np.full((180, 240), 12, np.uint8)])
    with pytest.raises(
        ConfigError, match=r"mask with the value 12.* 0 to 10, and 11 marks pixels without"
    ):
        load(tmp_path)


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [np.zeros((180, 240), np.uint8)], size=(360, 480))
    with pytest.raises(ConfigError, match=r"row 0 has 360x480 pixels, not 180x240"):
        load(tmp_path)


def test_missing_files_fail_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"contains no folder camvid-240x180 .*: set data-dir"):
        load(tmp_path)


@pytest.mark.parametrize("scheme", ["classes", "dirichlet"])
def test_a_partition_by_class_is_refused_by_the_config(scheme: str) -> None:
    with pytest.raises(ConfigError, match=r'"\w+": an image of .* every pixel.* natural or iid'):
        Settings.from_run_config({"task": "camvid", "partition": scheme})
    assert Settings.from_run_config({"task": "camvid", "partition": "natural"}).model
