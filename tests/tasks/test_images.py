"""Image files: exact pixels, both kinds of files, and errors that name file and remedy."""

import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks.images import decode, find_folder, read_parquet
from fixbn_flwr.tasks.task import Split

COLOURS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)  # [height, width, channels]


def png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def write(path: Path, **columns: Any) -> Path:
    """Write a Parquet file of two images; the second is one channel of COLOURS."""
    images = [{"bytes": png(pixels), "path": None} for pixels in (COLOURS, COLOURS[:, :, 0])]
    table = {"image": images, "label": [1, 0], "writer": ["f2", "f1"], **columns}
    parquet.write_table(pyarrow.table({key: v for key, v in table.items() if v is not None}), path)
    return path


def read(path: Path) -> Split:
    return read_parquet(path, mode="RGB", size=2, label="label", classes=2, group="writer")


def test_decode_returns_channels_first() -> None:
    images = decode([BytesIO(png(COLOURS))], ["a"], "RGB", (2, 2))
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    assert images.tolist() == [[[[0, 3], [6, 9]], [[1, 4], [7, 10]], [[2, 5], [8, 11]]]]


def test_decode_reads_files_and_converts_between_colour_and_grey(tmp_path: Path) -> None:
    grey = np.array([[10, 20, 30]], dtype=np.uint8)
    file = tmp_path / "grey.png"
    file.write_bytes(png(grey))
    assert decode([file], ["a"], "L", (1, 3)).tolist() == [[[[10, 20, 30]]]]
    assert decode([file], ["a"], "RGB", (1, 3)).tolist() == [[[[10, 20, 30]]] * 3]
    colour = BytesIO(png(np.stack([grey] * 3, axis=2)))
    assert decode([colour], ["a"], "L", (1, 3)).tolist() == [[[[10, 20, 30]]]]


def test_decode_names_an_unreadable_image_or_a_wrong_size(tmp_path: Path) -> None:
    valid = png(COLOURS)
    for damaged in (b"", b"text", valid[:40], valid[:-30]):
        with pytest.raises(
            ConfigError, match=r"^photo 2 cannot be read as an image \(.*download the data again"
        ):
            decode([BytesIO(valid), BytesIO(damaged)], ["photo 1", "photo 2"], "RGB", (2, 2))
    with pytest.raises(ConfigError, match=r"^photo 1 cannot be read as an image \(.*No such file"):
        decode([tmp_path / "none.png"], ["photo 1"], "RGB", (2, 2))
    with pytest.raises(ConfigError, match=r"^photo 1 has 2x2 pixels, not 4x2"):
        decode([BytesIO(valid)], ["photo 1"], "RGB", (4, 2))


def test_parquet_returns_images_targets_and_groups_in_the_order_of_the_file(tmp_path: Path) -> None:
    split = read(write(tmp_path / "a.parquet"))
    assert split.images.shape == (2, 3, 2, 2)
    assert split.images[0, 1].tolist() == [[1, 4], [7, 10]]
    assert split.images[1, 1].tolist() == [[0, 3], [6, 9]]
    assert split.targets.dtype == torch.int64
    assert split.targets.tolist() == [1, 0]
    assert split.groups is not None
    assert split.groups.dtype == torch.int64
    assert split.groups.tolist() == [1, 0]


def test_parquet_without_a_group_column_has_no_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", label=np.array([1, 0], dtype=np.int32))
    split = read_parquet(path, mode="RGB", size=2, label="label", classes=2)
    assert split.groups is None
    assert split.targets.dtype == torch.int64


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"label": None},
            "has no column label with a value in every row: replace the file.",
        ),
        ({"writer": None}, "has no column writer"),
        ({"label": [1, None]}, "has no column label with a value in every row"),
        ({"label": [1, 2]}, "the column label must hold integers from 0 to 1"),
        ({"label": [-1, 1]}, "the column label must hold integers from 0 to 1"),
        ({"label": [0.5, 1.0]}, "the column label must hold integers"),
        ({"label": ["0", "1"]}, "the column label must hold integers"),
        ({"image": [{"bytes": b"x", "path": None}] * 2}, "row 0 cannot be read as an image"),
        (
            {"image": [{"bytes": None, "path": "1.png"}] * 2},
            "row 0: the column image has no image",
        ),
    ],
)
def test_parquet_with_invalid_columns_is_refused(
    columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.parquet", **columns)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}.*{re.escape(message)}"):
        read(path)


def test_empty_truncated_or_missing_parquet_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    parquet.write_table(parquet.read_table(path).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(ConfigError, match=r"empty.parquet has no column image .* has 0 rows"):
        read(tmp_path / "empty.parquet")
    (tmp_path / "short.parquet").write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ConfigError, match=r"short.parquet cannot be read .* replace the file"):
        read(tmp_path / "short.parquet")
    with pytest.raises(ConfigError, match=r"none.parquet cannot be read"):
        read(tmp_path / "none.parquet")


def test_find_folder_prefers_the_first_name_and_accepts_the_folder_itself(tmp_path: Path) -> None:
    for name in ("large", "small", "."):
        (tmp_path / name / "train").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    assert find_folder(tmp_path, ["large", "small"], ["train"]) == tmp_path / "large"
    assert find_folder(tmp_path, ["small", "large"], ["train"]) == tmp_path / "small"
    assert find_folder(tmp_path, ["empty", "small"], ["train"]) == tmp_path / "small"
    assert find_folder(tmp_path, ["other"], ["train.parquet", "train"]) == tmp_path


def test_the_error_of_find_folder_names_the_expected_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"contains no folder large or small with train in it: set data-dir"
    ):
        find_folder(tmp_path, ["large", "small"], ["train"])
    with pytest.raises(
        ConfigError, match=r"\.cache/fixbn-flwr contains no folder no-such-set with"
    ):
        find_folder(None, ["no-such-set"], ["no-such-file"])
