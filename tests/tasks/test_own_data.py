"""The example of users' own data: it is generated, loaded, trained on, and shown in the docs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fixbn_flwr.app import client_app
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits
from fixbn_flwr.testing import FIRST_NODE_ID, SerializingGrid
from tests.support.whole_app import SMALL, rounds_of, run_app, serve

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own-data"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Add the example to the import path, as PYTHONPATH=$PWD does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from make_data import write

    folder = tmp_path_factory.mktemp("postcodes")
    write(folder)
    return folder


def test_the_example_reads_images_digits_and_post_offices(data: Path) -> None:
    task = get_task("postcodes:TASK")
    train, test = load_splits(task, data)
    assert train.images.shape == (1_437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    assert train.groups is not None
    assert train.groups.bincount().tolist() == [720, 478, 239]
    pixels = train.images.float()
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx(
        (task.mean[0], task.std[0]), abs=0.1
    )
    # The files are sorted by office, then by digit; office C's pen is half as dark.
    digits = torch.unique_consecutive(train.targets)
    assert digits.tolist()[:2] == [0, 1]
    assert [int(train.images[train.groups == office].max()) for office in range(3)] == [
        240,
        240,
        120,
    ]


def test_the_example_trains_with_one_office_per_client_and_freezes_statistics(
    data: Path, tmp_path: Path
) -> None:
    run_config = {
        "task": "postcodes:TASK",
        "data-dir": str(data),
        "partition": "natural",
        "fraction-train": 1.0,
        "local-steps": 20,
        "batch-size": 32,
    }
    folders = [
        run_app(tmp_path / str(rounds), 3, run_config | rounds)
        for rounds in ({"num-server-rounds": 2, "freeze-after": 1.0}, {"num-server-rounds": 3})
    ]
    rounds = rounds_of(folders[1])
    assert [entry["phase"] for entry in rounds] == ["exploration"] * 2 + ["calibration"]
    assert rounds[-1]["test_accuracy"] > 0.5  # of ten digits
    assert "-postcodes-" in folders[1].name

    # Two rounds of plain BN end with the statistics that FixBN freezes, bit for bit.
    at_freeze, final = (load_file(folder / "final.safetensors") for folder in folders)
    statistics = [name for name in final if "running_" in name]
    assert len(statistics) == 10
    assert all(np.array_equal(at_freeze[name], final[name]) for name in statistics)
    assert not any(
        np.array_equal(at_freeze[name], final[name]) for name in final if "weight" in name
    )


def test_the_example_fails_with_the_missing_files(tmp_path: Path) -> None:
    task = get_task("postcodes:TASK")
    with pytest.raises(ConfigError, match="data-dir is empty"):
        task.load(None)
    with pytest.raises(ConfigError, match=r"train has no <post office>/<digit>/\*.png: check data"):
        task.load(tmp_path)


def test_the_page_shows_the_file_unchanged() -> None:
    page = (ROOT / "docs" / "your-own-data.md").read_text(encoding="utf-8")
    code = (EXAMPLE / "postcodes.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```\n" in page
    assert len(code.splitlines()) <= 60


def test_offices_with_their_own_data_train_on_all_of_it_in_a_fixed_order(
    data: Path, tmp_path: Path
) -> None:
    for office in "ABC":
        others = shutil.ignore_patterns(*set("ABC") - {office})
        shutil.copytree(data / "train", tmp_path / office / "train", ignore=others)
        shutil.copytree(data / "test", tmp_path / office / "test")

    def run(name: str, nodes: str) -> Path:
        config: dict[str, Any] = {
            **SMALL,
            "task": "postcodes:TASK",
            "data-dir": str(data),  # the server's
            "fraction-train": 1.0,
            "min-clients": 3,
            "output-dir": str(tmp_path),
            "run-name": name,
        }
        grid = SerializingGrid(client_app.app, 3, run_config={**config, "data-dir": "/not/here"})
        for node, office in enumerate(nodes):
            own = {"data-dir": str(tmp_path / office), "name": office}
            grid.contexts[FIRST_NODE_ID + node].node_config = own
        serve(grid, config)
        return tmp_path / name

    first = run("first", "ABC")
    assert json.loads((first / "config.json").read_text())["own_data"] is True
    assert [line["clients"] for line in rounds_of(first)] == [3, 3, 3]
    second = run("again", "CAB")  # other machines have these numbers
    final = "final.safetensors"
    assert (first / final).read_bytes() == (second / final).read_bytes()


def test_a_node_with_a_wrong_path_ends_the_run_with_its_name(data: Path, tmp_path: Path) -> None:
    config = {**SMALL, "task": "postcodes:TASK", "data-dir": str(data), "partition": "iid"}
    grid = SerializingGrid(client_app.app, 2, run_config=config)
    for node, (name, folder) in enumerate({"a": data, "b": tmp_path}.items()):
        own = {"data-dir": str(folder), "name": name}
        grid.contexts[FIRST_NODE_ID + node].node_config = own
    with pytest.raises(ConfigError) as caught:
        serve(grid, config | {"output-dir": str(tmp_path / "runs")})
    assert str(caught.value).startswith(f"client 1001 cannot start: b: {tmp_path}/train has no")
    assert not (tmp_path / "runs").exists()
