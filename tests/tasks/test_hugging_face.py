"""Data sets of Hugging Face as tasks: their columns and splits, and federations; all local."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fixbn_flwr
from fixbn_flwr.app.inference.export import export
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import DataOptions, Split, Task, find_task, get_task, load_splits
from fixbn_flwr.tasks.hugging_face_table import group_numbers
from tests.support.image_trees import PACS, write_images
from tests.support.whole_app import rounds_of, run_app

datasets = pytest.importorskip("datasets")
pytest.importorskip("flwr_datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the tests from the network and from the user's cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("flwr_datasets.common.telemetry.FLWR_TELEMETRY_ENABLED", "0")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def task_and_splits(name: str, **options: Any) -> tuple[Task, Split, Split]:
    task = get_task(name, DataOptions(**options))
    return task, *load_splits(task, options.get("data_dir"))


def table(folder: Path, **splits: dict[str, list[Any]]) -> str:
    """Write splits as Parquet files with an image for each row; return the task's name."""
    from PIL import Image

    folder.mkdir()
    for name, columns in splits.items():
        rows = len(next(iter(columns.values())))
        images = [Image.new("L", (8, 8), 10 * row) for row in range(rows)]
        rows_of = datasets.Dataset.from_dict({"picture": images, **columns})
        rows_of.cast_column("picture", datasets.Image()).to_parquet(folder / f"{name}.parquet")
    return f"hf:{folder}"


def test_pacs_is_that_of_the_built_in_task(shared_data: Path) -> None:
    task, train, test = task_and_splits(f"hf:{shared_data}/pacs-64", group_column="domain")
    expected = load_splits(get_task("pacs"), shared_data)
    assert task.class_names == PACS
    for split, other in zip((train, test), expected, strict=True):
        assert torch.equal(split.images[:], other.images[:])
        assert torch.equal(split.targets[:], other.targets[:])
    assert train.groups is not None
    assert expected[0].groups is not None
    assert torch.equal(train.groups, expected[0].groups)


def test_the_only_column_of_classes_is_found_and_grey_images_become_rgb(shared_data: Path) -> None:
    task, train, test = task_and_splits(f"hf:{shared_data}/femnist-small", group_column="writer_id")
    assert train.images[:].shape == (7_482, 3, 28, 28)
    assert (len(test), task.classes) == (858, 62)
    assert train.groups is not None
    assert len(train.groups.unique()) == 50


def test_the_validation_split_is_the_test_data_if_there_is_no_other(shared_data: Path) -> None:
    _, train, test = task_and_splits(f"hf:{shared_data}/tiny-imagenet-50", label_column="label_200")
    assert (len(train), len(test)) == (10_000, 1_250)
    assert int(train.labels.max()) == 49  # 50 classes, named after the column's values


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["cat", "dog", "bird", "cat"], ("bird", "cat", "dog")),
        ([7, 3, 12, 7], ("3", "7", "12")),
    ],
)
def test_classes_without_names_are_the_values(
    tmp_path: Path, labels: list[Any], names: tuple[str, ...]
) -> None:
    name = table(tmp_path / "own", train={"label": labels}, test={"label": labels[:1]})
    task, train, test = task_and_splits(name)
    assert task.class_names == names
    assert [task.class_names[label] for label in train.labels] == list(map(str, labels))
    assert [task.class_names[label] for label in test.labels] == [str(labels[0])]
    assert train.images[:][2, :, 0, 0].tolist() == [20, 20, 20]


def test_test_rows_without_classes_are_not_used(tmp_path: Path) -> None:
    name = table(tmp_path / "own", train={"label": [0, 1] * 10}, test={"label": [-1] * 5})
    _, train, test = task_and_splits(name)
    assert [split.labels.tolist().count(0) for split in (train, test)] == [8, 2]
    assert [split.labels.tolist().count(1) for split in (train, test)] == [8, 2]


def test_data_dir_holds_the_folder_of_the_name(tmp_path: Path) -> None:
    table(tmp_path / "own", train={"label": [0, 1] * 5})
    _, train, _ = task_and_splits("hf:own", data_dir=tmp_path)
    assert len(train) == 8
    with pytest.raises(ConfigError, match=r"there is no folder .*/other: leave data-dir empty to"):
        task_and_splits("hf:other", data_dir=tmp_path)


def test_a_folder_of_images_works_too(shared_data: Path, tmp_path: Path) -> None:
    write_images(shared_data, tmp_path / "own" / "train", "train", 0, per_class=3, classes=2)
    write_images(shared_data, tmp_path / "own" / "test", "test", 0, per_class=1, classes=2)
    task, train, test = task_and_splits(f"hf:{tmp_path}/own", image_size=16)
    assert task.class_names == ("dog", "elephant")
    assert (train.images[:].shape, len(test)) == ((6, 3, 16, 16), 2)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [0, 1], "b": [0, 1]}, {}, "label-column is empty, and .* one of picture, a, b"),
        ({"a": [0, 1]}, {"label_column": "c"}, "label-column is 'c', which is no column of"),
        ({"label": [0, 1]}, {"group_column": "c"}, "group-column is 'c', which is no column of"),
        (
            {"label": [0, 1], "clinic": ["north", None]},
            {"group_column": "clinic"},
            "group-column is 'clinic', which has the value None in .* Remove the other rows, or",
        ),
        (
            {"label": [0, 1], "clinic": [1.0, float("nan")]},
            {"group_column": "clinic"},
            "group-column is 'clinic', which has the value nan in",
        ),
        ({"label": [0.5, 1.5]}, {}, "column label of .* has the value .*: each row needs a class"),
        ({"label": [None, "cat"]}, {}, "column label of .* has the value None"),
        ({"label": [-1, 2]}, {}, "column label of .* has the value -1"),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    tmp_path: Path, columns: dict[str, list[Any]], options: dict[str, Any], message: str
) -> None:
    name = table(tmp_path / "own", train={key: values * 2 for key, values in columns.items()})
    with pytest.raises(ConfigError, match=message):
        task_and_splits(name, **options)


def test_clients_of_different_types_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'clinic', .* such as 'north' and 2: use one type"):
        group_numbers("scans", "clinic", ["north", 2])


def test_test_rows_are_chosen_only_where_they_are_wanted(tmp_path: Path) -> None:
    name = table(tmp_path / "own", train={"label": [0, 1] * 5})
    sizes = [len(split) for split in task_and_splits(name, choose_test=False)[1:]]
    assert sizes == [10, 0]


def test_data_that_cannot_be_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match=r"task is 'hf:/no/where', but there is no folder .*: check"
    ):
        get_task("hf:/no/where")
    with pytest.raises(ConfigError, match=r"'hf:no/such', which cannot be loaded \(Conn.*: check"):
        get_task("hf:no/such")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.parquet").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="own', which cannot be loaded"):
        get_task(f"hf:{tmp_path}/own")
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(ConfigError, match=r'install it with pip install "fixbn-flwr\[hf\]"'):
        get_task("hf:never/loaded")


def test_the_task_has_a_name_for_folders() -> None:
    assert find_task("hf:uoft-cs/cifar100:fine").name == "hf-uoft-cs-cifar100-fine"


def test_a_federation_trains_and_its_model_needs_no_data(shared_data: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_data / "pacs-64", tmp_path / "own")
    run_config = {
        "task": f"hf:{tmp_path}/own",
        "group-column": "domain",
        "partition": "natural",
        "image-size": 32,
        "local-steps": 1,
        "model": "timm:resnet10t",
        "learning-rate": 0.01,
    }
    folder = run_app(tmp_path / "runs", 4, run_config)
    assert np.isfinite([row["test_loss"] for row in rounds_of(folder)]).all()
    shutil.rmtree(tmp_path / "own")
    assert fixbn_flwr.load(folder, "final").class_names == PACS
    exported = export(folder, "safetensors", "final").parent
    assert str(tmp_path) not in (exported / "config.json").read_text()
    assert str(tmp_path) not in (exported / "README.md").read_text()
    assert fixbn_flwr.load(exported).class_names == PACS
