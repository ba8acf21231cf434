"""Each missing or damaged data set results in one error that names the file and the reason."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits
from tests.support.command_line import everything_in, failing_command

pytestmark = pytest.mark.usefixtures("elsewhere")

PARQUET = {"femnist": "femnist-small", "pacs": "pacs-64", "camvid": "camvid-240x180"}


def png(width: int, height: int, colour: int = 0, mode: str = "L") -> bytes:
    file = BytesIO()
    Image.new(mode, (width, height), colour).save(file, "PNG")
    return file.getvalue()


def missing(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def damaged_in_the_middle(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[1000:3000] = bytes(2000)
    file.write_bytes(content)


def a_folder_in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()


def another_kind_of_file(file: Path) -> None:
    file.write_bytes(pickle.dumps({"data": [1, 2, 3]}))


def with_column(name: str, make: Callable[[int], Any]) -> Callable[[Path], None]:
    """Return a function that replaces a column of the first 4 rows, and drops the other rows."""

    def damage(file: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        table = parquet.read_table(file).slice(0, 4)
        column = pyarrow.array([make(row) for row in range(len(table))])
        place = table.schema.get_field_index(name)
        parquet.write_table(table.set_column(place, name, column), file)

    damage.__name__ = f"invalid {name}"
    return damage


def without_column(file: Path) -> None:
    from pyarrow import parquet

    table = parquet.read_table(file)
    parquet.write_table(table.drop_columns([table.schema.names[1]]), file)


def without_rows(file: Path) -> None:
    from pyarrow import parquet

    parquet.write_table(parquet.read_table(file).slice(0, 0), file)


def image(content: bytes | None) -> dict[str, Any]:
    return {"bytes": content, "path": "x.png"}


HUGE_BY_ITS_HEADER = png(28, 28).replace(
    (28).to_bytes(4, "big") * 2, (100_000).to_bytes(4, "big") * 2, 1
)
DATA: list[tuple[str, Callable[[Path], None], str]] = [
    ("femnist", missing, "train.parquet"),
    ("femnist", empty, r"train.parquet cannot be read .*: replace the file"),
    ("femnist", truncated, "train.parquet cannot be read"),
    ("femnist", damaged_in_the_middle, "train.parquet"),
    ("femnist", a_folder_in_its_place, "train.parquet cannot be read"),
    ("femnist", another_kind_of_file, "train.parquet cannot be read"),
    ("femnist", without_column, "has no column character .*: replace the file"),
    ("femnist", without_rows, "replace the file. It has 0 rows"),
    ("femnist", with_column("image", lambda _: "a/path.png"), "row 0: .*image has no image"),
    ("femnist", with_column("image", lambda _: image(None)), "row 0: .*image has no image"),
    ("femnist", with_column("image", lambda _: image(b"junk")), "row 0 cannot be read as an image"),
    ("femnist", with_column("image", lambda _: image(png(28, 28)[:45])), "row 0 cannot be read"),
    ("femnist", with_column("image", lambda _: image(png(27, 28))), "row 0 has 28x27 pixels, not"),
    ("femnist", with_column("image", lambda _: image(HUGE_BY_ITS_HEADER)), "row 0 "),
    ("femnist", with_column("character", lambda _: 62), "character must hold integers from 0 to"),
    ("femnist", with_column("character", lambda _: "a"), "character must hold integers"),
    ("pacs", truncated, "train.parquet cannot be read"),
    ("pacs", with_column("label", lambda _: 7), "label must hold integers from 0 to 6"),
    ("pacs", with_column("domain", lambda row: None if row else "art"), "no column domain with a"),
    ("camvid", truncated, "train.parquet cannot be read"),
    ("camvid", with_column("mask", lambda _: image(png(240, 180, 12))), "mask with the value 12"),
    ("camvid", with_column("mask", lambda _: image(png(180, 240))), "row 0 has 240x180 pixels"),
    ("camvid", with_column("mask", lambda _: 3), "row 0: the column mask has no image"),
]


@pytest.mark.parametrize(
    ("task", "damage", "message"), DATA, ids=[f"{t}-{d.__name__}" for t, d, _ in DATA]
)
def test_the_error_names_a_damaged_parquet_file(
    task: str, damage: Callable[[Path], None], message: str, shared_data: Path, elsewhere: Path
) -> None:
    folder = elsewhere / PARQUET[task]
    shutil.copytree(shared_data / folder.name, folder)
    damage(folder / "train.parquet")
    with pytest.raises(ConfigError, match=message):
        load_splits(get_task(task), elsewhere)


def test_a_command_with_damaged_data_leaves_no_files(
    shared_data: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(shared_data / "pacs-64", elsewhere / "data" / "pacs-64")
    truncated(elsewhere / "data" / "pacs-64" / "train.parquet")
    before = everything_in(elsewhere)
    code, stderr = failing_command(
        capsys, "centralised", "task=pacs", "data-dir=data", "device=cpu"
    )
    assert code == 1
    assert "train.parquet cannot be read" in stderr
    assert everything_in(elsewhere) == before


@pytest.mark.parametrize("damage", [missing, empty, truncated, another_kind_of_file])
def test_a_damaged_cifar10_is_refused(
    damage: Callable[[Path], None], shared_data: Path, elsewhere: Path
) -> None:
    """A file with another checksum is not opened, and it cannot be downloaded again offline."""
    name = "cifar-10-batches-py"
    (elsewhere / name).mkdir()
    for file in (shared_data / name).iterdir():
        (elsewhere / name / file.name).symlink_to(file)
    own = elsewhere / name / "data_batch_1"
    own.unlink()
    own.write_bytes(b"x" * 1000)
    damage(own)
    with pytest.raises(ConfigError, match=r"CIFAR-10 is incomplete in .* unpack cifar-10-python"):
        load_splits(get_task("cifar10"), elsewhere)


def make_tiny_imagenet(folder: Path) -> Path:
    """Create Tiny-ImageNet's folders, with one image in each class."""
    root = folder / "tiny-imagenet-200"
    for number in range(200):
        images = root / "train" / f"n{number:08}" / "images"
        images.mkdir(parents=True)
        (images / "0.JPEG").write_bytes(png(64, 64, mode="RGB"))
    (root / "val" / "images").mkdir(parents=True)
    (root / "val" / "images" / "0.JPEG").write_bytes(png(64, 64, mode="RGB"))
    (root / "val" / "val_annotations.txt").write_text("0.JPEG\tn00000000\t0\t0\t1\t1\n")
    return root


TINY: list[tuple[str, Callable[[Path], object], str]] = [
    ("a class is missing", lambda f: shutil.rmtree(f / "train" / "n00000007"), "199 folders"),
    ("an image is missing", lambda f: missing(f / "train/n00000007/images/0.JPEG"), "0 images"),
    ("an image is empty", lambda f: empty(f / "train/n00000007/images/0.JPEG"), "as an image"),
    (
        "an image has another size",
        lambda f: (f / "train/n00000007/images/0.JPEG").write_bytes(png(32, 64, mode="RGB")),
        "has 64x32 pixels, not 64x64",
    ),
    ("no annotations", lambda f: missing(f / "val" / "val_annotations.txt"), "is incomplete"),
    (
        "annotations in another encoding",
        lambda f: (f / "val" / "val_annotations.txt").write_bytes(b"\xff\xfe\x00"),
        "is incomplete",
    ),
    (
        "annotations of another class",
        lambda f: (f / "val" / "val_annotations.txt").write_text("0.JPEG\tdog\n"),
        "line 1, has the class 'dog', which is not a folder",
    ),
]


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in TINY], ids=[r[0] for r in TINY])
def test_a_damaged_tiny_imagenet_is_refused(
    damage: Callable[[Path], object], message: str, elsewhere: Path
) -> None:
    damage(make_tiny_imagenet(elsewhere))
    with pytest.raises(ConfigError, match=message):
        load_splits(get_task("tiny-imagenet"), elsewhere)


OWN = """
import torch
from fixbn_flwr.tasks import Split, Task
from fixbn_flwr.tasks.digits import TASK as DIGITS
from dataclasses import replace

def load(data_dir):
    images, targets = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 3])
    {body}

TASK = replace(DIGITS, name={name!r}, load=load)
"""


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        (
            "mine",
            "return open('nowhere.csv')",
            r"mine cannot be loaded \(FileNotFoundError: .*now",
        ),
        ("mine", "return images, targets", "of task mine is a tuple, not a pair of Splits"),
        ("mine", "return None", "of task mine is a NoneType, not a pair of Splits"),
        ("mine", "return (Split(images, targets + 7),) * 2", "has classes 7 to 10, but the task"),
        ("mine", "return (Split(images, targets[:3]),) * 2", "has 4 images and 3 targets"),
        ("mine", "return (Split(images[:0], targets[:0]),) * 2", "has 0 images and 0 targets"),
        ("../mine", "return None", "has the name '../mine', which also names run folders"),
        ("mine", "return (", r"cannot be imported \(SyntaxError"),
    ],
)
def test_an_invalid_own_task_is_refused(
    name: str,
    body: str,
    message: str,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (elsewhere / "invalid_task.py").write_text(OWN.format(name=name, body=body))
    monkeypatch.syspath_prepend(elsewhere)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "invalid_task", raising=False)
    code, stderr = failing_command(capsys, "centralised", "task=invalid_task:TASK", "device=cpu")
    assert code == 1
    assert re.search(message, stderr), stderr
    assert everything_in(elsewhere) == ["invalid_task.py"]
