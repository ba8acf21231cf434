"""What a model takes and returns, and the names of the classes of every task."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from fixbn_flwr.tasks import TASKS, get_task, load_splits
from fixbn_flwr.tasks.signature import Signature

NAMED = [name for name in TASKS if name != "digits"]


def test_digits_have_their_numbers_and_sixteen_as_white() -> None:
    task = get_task("digits")
    train, test = load_splits(task)
    assert Signature.of(task, test.images) == Signature(
        tuple("0123456789"), (1, 8, 8), task.mean, task.std, white=16
    )
    assert int(train.images.max()) == 16  # type: ignore[attr-defined]


def test_it_survives_json() -> None:
    signature = Signature(("ein", "zwei"), (3, 4, 5), (1.5, 2.5, 3.5), (1.0, 2.0, 3.0), 255)
    assert Signature.from_json(json.loads(json.dumps(dataclasses.asdict(signature)))) == signature


def test_a_segmentation_model_takes_windows_of_a_multiple_of_16() -> None:
    frames = torch.zeros(2, 3, 180, 240, dtype=torch.uint8)
    assert Signature.of(get_task("camvid"), frames).input_size == (3, 192, 240)
    frames = torch.zeros(1, 3, 1024, 2048, dtype=torch.uint8)
    assert Signature.of(get_task("cityscapes"), frames).input_size == (3, 512, 1024)


@pytest.mark.parametrize("name", NAMED)
def test_every_class_has_a_name_of_its_own(name: str) -> None:
    task = get_task(name)
    assert len(set(task.class_names)) >= task.classes - (name == "tiny-imagenet")
    assert len(task.class_names) == task.classes
    assert all(names and names == names.strip() for names in task.class_names)


@pytest.mark.parametrize(
    ("name", "number", "class_name"),
    [
        ("cifar10", 3, "cat"),
        ("femnist", 9, "9"),
        ("femnist", 10, "A"),
        ("femnist", 36, "a"),
        ("pacs", 6, "person"),
        ("camvid", 3, "road"),
        ("cityscapes", 13, "car"),
        ("tiny-imagenet", 0, "goldfish"),
        ("tiny-imagenet", 199, "acorn"),
    ],
)
def test_names_are_in_the_order_of_the_targets(name: str, number: int, class_name: str) -> None:
    assert get_task(name).class_names[number] == class_name


def test_tiny_imagenets_names_have_the_order_of_imagenet() -> None:
    """Both are ordered by WordNet id."""
    categories = pytest.importorskip("torchvision.models._meta")._IMAGENET_CATEGORIES
    remaining = iter(categories)
    assert [name for name in get_task("tiny-imagenet").class_names if name not in remaining] == []


def test_tiny_imagenets_names_are_those_of_the_files(shared_data: Path) -> None:
    names = get_task("tiny-imagenet").class_names
    with (shared_data / "tiny-imagenet-50" / "classes.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            assert names[int(row["label_200"])] == row["name"].split(", ")[0]


def test_cifar10s_names_are_those_of_the_files(shared_data: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    folder = shared_data / "cifar-10-batches-py"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    names = datasets.CIFAR10(shared_data, train=False).classes
    assert tuple(names) == get_task("cifar10").class_names
