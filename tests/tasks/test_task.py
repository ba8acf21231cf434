"""Finding tasks by name, reading their data once, normalising."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import TASKS, Split, Task, get_task, load_splits, normalise
from fixbn_flwr.tasks.task import accuracy


@pytest.mark.parametrize("name", TASKS)
def test_get_task(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    assert get_task(name) is task


def test_unknown_task() -> None:
    with pytest.raises(ConfigError, match=r"task is 'mnist'.*digits, cifar10"):
        get_task("mnist")


def test_importing_a_task_imports_no_other_and_nothing_heavy() -> None:
    code = (
        "import sys; from fixbn_flwr.tasks import get_task; get_task('digits');"
        "print([m for m in ('fixbn_flwr.tasks.cifar10', 'torchvision', 'sklearn', 'datasets',"
        " 'flwr_datasets', 'torchmetrics') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"


def toy_task(reads: list[Path | None]) -> Task:
    def load(data_dir: Path | None) -> tuple[Split, Split]:
        reads.append(data_dir)
        split = Split(torch.zeros(2, 2, 1, 1, dtype=torch.uint8), torch.tensor([0, 1]))
        return split, split

    return Task(
        name="toy",
        classes=2,
        load=load,
        models={},
        mean=(1.0, 10.0),
        std=(2.0, 5.0),
        augment=None,
        loss=torch.nn.functional.cross_entropy,
        metric=lambda: accuracy(2),
    )


def test_splits_are_read_once_per_folder(tmp_path: Path) -> None:
    reads: list[Path | None] = []
    task = toy_task(reads)
    train, _ = load_splits(task)
    assert load_splits(task)[0] is train
    load_splits(task, tmp_path)
    load_splits(task, tmp_path / "folder" / "..")
    assert reads == [None, tmp_path]
    assert len(train) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalise(dtype: torch.dtype) -> None:
    images = torch.tensor([[[[5]], [[0]]], [[[0]], [[255]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[2.0]], [[-2.0]]], [[[-0.5]], [[49.0]]]], dtype=dtype)
    result = normalise(toy_task([]), images, dtype)
    assert result.dtype == dtype
    assert torch.equal(result, expected)


def test_accuracy_counts_images_not_classes() -> None:
    metric = accuracy(3)
    metric.update(torch.eye(3)[[0, 0, 0, 2]], torch.tensor([0, 0, 0, 1]))
    assert metric.compute().item() == 0.75
