"""Finding tasks by name, loading their data only once, and normalising images."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import TASKS, Split, Task, get_task, load_splits, normalise
from fixbn_flwr.tasks.metrics import Accuracy


@pytest.mark.parametrize("name", TASKS)
def test_get_task_returns_the_task_of_a_name(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    assert get_task(name) is task


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"task is 'mnist'.*digits, cifar10, .*, or package.module:NAME"
    ):
        get_task("mnist")


IMPORTS = """
import sys
from importlib import import_module
names = import_module("fixbn_flwr.tasks").TASKS
files = {f"fixbn_flwr.tasks.{name.replace('-', '_')}" for name in names}
for name in names:
    for module in [module for module in sys.modules if module.startswith("fixbn_flwr")]:
        del sys.modules[module]  # torch stays: importing it again takes seconds
    import_module("fixbn_flwr.tasks").get_task(name)
    print(*sorted(files.intersection(sys.modules)))
heavy = (
    "torchvision", "sklearn", "datasets", "flwr_datasets", "torchmetrics", "pyarrow",
    "segmentation_models_pytorch",
)
print([module for module in heavy if module in sys.modules])
"""


def test_importing_a_task_imports_no_other_task_and_no_heavy_dependency() -> None:
    run = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    *imported, heavy = run.stdout.splitlines()
    assert imported == [f"fixbn_flwr.tasks.{name.replace('-', '_')}" for name in TASKS]
    assert heavy == "[]"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that writes a user's module `own_module`, importable during the test."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> None:
        (tmp_path / "own_module.py").write_text(code)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("own_module", None)


def test_get_task_imports_a_users_own_task(own: Callable[[str], None]) -> None:
    own(
        "from dataclasses import replace; from fixbn_flwr.tasks import get_task\n"
        "MINE = replace(get_task('digits'), name='mine-2')"
    )
    task = get_task("own_module:MINE")
    assert task.name == "mine-2"
    assert get_task("own_module:MINE") is task


def test_an_own_task_that_names_only_some_classes_is_refused(own: Callable[[str], None]) -> None:
    own(
        "from dataclasses import replace; from fixbn_flwr.tasks import get_task\n"
        "MINE = replace(get_task('digits'), class_names=('zero', 'one'))"
    )
    with pytest.raises(
        ConfigError, match="own_module:MINE has 2 class_names, but 10 classes: name each class"
    ):
        get_task("own_module:MINE")


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (
            "",
            "no_module:TASK",
            r"^no_module:TASK cannot be imported \(ModuleNotFoundError: .*PYTHON",
        ),
        ("", "own_module:TASK", r"\(AttributeError: .*'TASK'\): install its package, or add"),
        ("", "own_module:", r"cannot be imported \(AttributeError"),
        ("", ":TASK", r"^:TASK cannot be imported"),
        ("1 / 0", "own_module:TASK", r"\(ZeroDivisionError: division by zero\)"),
        (
            "TASK = 'digits'",
            "own_module:TASK",
            r"own_module:TASK is a str: name a fixbn_flwr.tasks.Task",
        ),
        (
            "from dataclasses import replace; from fixbn_flwr.tasks import get_task\n"
            "TASK = replace(get_task('digits'), name='../mine')",
            "own_module:TASK",
            r"has the name '../mine', which also names run folders: use only letters",
        ),
    ],
)
def test_an_invalid_task_of_a_user_is_refused(
    own: Callable[[str], None], code: str, name: str, message: str
) -> None:
    own(code)
    with pytest.raises(ConfigError, match=message):
        get_task(name)


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
        metric=Accuracy,
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
def test_normalise_subtracts_the_mean_and_divides_by_the_deviation(dtype: torch.dtype) -> None:
    images = torch.tensor([[[[5]], [[0]]], [[[0]], [[255]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[2.0]], [[-2.0]]], [[[-0.5]], [[49.0]]]], dtype=dtype)
    result = normalise(toy_task([]), images, dtype)
    assert result.dtype == dtype
    assert torch.equal(result, expected)
