"""Tiny-ImageNet: both layouts with real images, and damaged official folders."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits, normalise
from fixbn_flwr.tasks.tiny_imagenet import load


def test_the_parquet_files_have_the_expected_splits(shared_data: Path) -> None:
    task = get_task("tiny-imagenet")
    train, test = load_splits(task, shared_data)
    assert train.images.shape == (10_000, 3, 64, 64)
    assert test.images.shape == (1_250, 3, 64, 64)
    assert train.images.dtype == torch.uint8
    assert train.images.is_contiguous()
    assert train.images[0, :, 0, 0].tolist() == [255, 136, 193]
    assert train.targets.bincount(minlength=200).tolist() == [200, 0, 0, 0] * 50
    assert test.targets.bincount(minlength=200).tolist() == [25, 0, 0, 0] * 50

    images = normalise(task, train.images[::9])
    assert images.mean((0, 2, 3)).abs().max() < 0.05
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.05


@pytest.fixture(scope="session")
def originals(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the official layout with two training images and one validation image per class.

    Of the 200 classes, 50 are real. Each other class has the images of the real class before it,
    and a name that sorts right after that class's name.
    """
    folder = tmp_path_factory.mktemp("official") / "tiny-imagenet-200"
    source = shared_data / "tiny-imagenet-50"
    train, validation = (
        parquet.read_table(source / f"{part}.parquet", columns=["image"])["image"].to_pylist()
        for part in ("train", "validation")
    )
    names = [line.split("\t")[2] for line in (source / "classes.tsv").read_text().splitlines()[1:]]
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for place in range(200):
        name = names[place // 4] + ("" if place % 4 == 0 else f"-{place % 4}")
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        for number in range(2):
            first = 200 * (place // 4)
            (images / f"{name}_{number}.JPEG").write_bytes(train[first + number]["bytes"])
        (folder / "train" / name / f"{name}_boxes.txt").write_text("")
        image = folder / "val" / "images" / f"val_{place}.JPEG"
        image.write_bytes(validation[25 * (place // 4)]["bytes"])
        lines.append(f"{image.name}\t{name}\t0\t0\t63\t63\n")
    # The official list is not sorted by class.
    (folder / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    return folder


@pytest.fixture
def official(originals: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(originals, tmp_path / "tiny-imagenet-200"))


def test_the_official_folder_gives_the_same_data_as_parquet(
    originals: Path, shared_data: Path
) -> None:
    train, test = load(originals.parent)
    assert train.targets.tolist() == [place // 2 for place in range(400)]
    assert test.targets.tolist() == list(reversed(range(200)))
    rows = load_splits(get_task("tiny-imagenet"), shared_data)
    real = torch.arange(50)
    assert torch.equal(train.images[8 * real], rows[0].images[200 * real])
    assert torch.equal(train.images[8 * real + 1], rows[0].images[200 * real + 1])
    assert torch.equal(train.targets[8 * real], rows[0].targets[200 * real])
    assert torch.equal(test.images[199 - 4 * real], rows[1].images[25 * real])
    assert torch.equal(test.targets[199 - 4 * real], rows[1].targets[25 * real])
    assert train.images.is_contiguous()
    assert train.groups is None


def test_data_dir_may_be_the_folder_itself(originals: Path) -> None:
    assert len(load(originals)[0]) == 400


def first_class(folder: Path) -> Path:
    return min((folder / "train").iterdir()) / "images"


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda f: shutil.rmtree(f / "train"),
        r"contains no folder tiny-imagenet-200 or tiny-imagenet-50",
    ),
    (lambda f: shutil.rmtree(first_class(f).parent), r"train has 199 folders, not one for each"),
    (
        lambda f: shutil.rmtree(first_class(f)),
        r"n01443537/images has 0 images .*other classes have 2",
    ),
    (lambda f: min(first_class(f).iterdir()).unlink(), r"has 1 images .*, other classes have 2"),
    (
        lambda f: [image.unlink() for image in f.glob("train/*/images/*")],
        r"has 0 images \(\*\.JPEG\), other classes have 0",
    ),
    (
        lambda f: min(first_class(f).iterdir()).write_bytes(b"half"),
        r"n01443537_0.JPEG cannot be read as an image",
    ),
    (lambda f: shutil.rmtree(f / "val"), r"incomplete: .*No such file .*val_annotations.txt"),
    (
        lambda f: (f / "val" / "val_annotations.txt").write_text(""),
        r"images has 200 images .*, but val_annotations.txt has 0 lines",
    ),
    (
        lambda f: (f / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\t0\n"),
        r"line 1, has the class 'n99', which is not a folder",
    ),
    (
        lambda f: (f / "val" / "val_annotations.txt").write_text("val_0.JPEG\n"),
        r"line 1, has the class '', which is not a folder",
    ),
    (lambda f: shutil.rmtree(f / "val" / "images"), r"has 0 images .*has 200 lines"),
    (
        lambda f: (f / "val" / "images" / "val_7.JPEG").rename(f / "val" / "images" / "x.JPEG"),
        r"val_7.JPEG cannot be read as an image .*No such file",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_folder_is_refused(
    damage: Callable[[Path], object], message: str, official: Path
) -> None:
    damage(official)
    with pytest.raises(ConfigError, match=message):
        load(official.parent)
