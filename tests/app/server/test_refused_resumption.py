"""Runs that cannot resume as asked are refused, and lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fixbn_flwr.app.runs.lock import locked
from fixbn_flwr.app.runs.momentum_files import delete_run
from fixbn_flwr.errors import CheckpointError, ConfigError
from tests.support.resumable_app import config_of, run, run_until_failure


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_until_failure(config_of(tmp_path), 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning-rate": 0.1}, "learning-rate was 0.05 and is 0.1"),
        ({"seed": 1, "batch-size": 4}, 'may-change="batch-size,seed"'),
        ({"may-change": "sed"}, '"sed" is not a key; did you mean seed?'),
        ({"num-server-rounds": 4, "freeze-after": 2}, "num-server-rounds was 8 and is 4"),
        (
            {"num-server-rounds": 4, "may-change": "num-server-rounds"},
            "5 rounds are already done",
        ),
        ({"validation-share": 0.2}, r"validation-share was 0.1 and is 0.2\n.*automatically\)$"),
        (
            {"validation-share": 0.0, "may-change": "seed, validation-share"},
            "validation-share cannot change: clients would validate the model on images",
        ),
        ({"freeze-after": 6, "may-change": "freeze-after"}, "T\\* cannot move to a later round"),
    ],
)
def test_another_config_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    config = config_of(folder.parent, resume=str(folder))
    with pytest.raises(ConfigError, match=message):
        run({**config, **change}, 2)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_number_of_clients_is_refused_unless_it_may_change(folder: Path) -> None:
    config = config_of(folder.parent, resume=str(folder))
    with pytest.raises(
        ConfigError, match=r'had 4 clients, and 5 are connected: .*may-change="clients"'
    ):
        run(config, 2, clients=5)
    run({**config, "may-change": "clients"}, 2, clients=5)
    assert json.loads((folder / "config.json").read_text())["clients"] == 5


def test_clients_with_other_data_than_before_are_refused(folder: Path) -> None:
    written = json.loads((folder / "config.json").read_text())
    assert not written["own_data"]
    (folder / "config.json").write_text(json.dumps({**written, "own_data": True}))
    with pytest.raises(ConfigError, match=r"on their own data, and these .* on parts of"):
        run(config_of(folder.parent, resume=str(folder)), 2)


@pytest.mark.parametrize(
    "content", ["nothing", "a file", "no config", "no JSON", "a list", "a part"]
)
def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x"
    if content == "a file":
        path.touch()
    elif content != "nothing":
        path.mkdir()
    if text := {"no JSON": "{", "a list": "[]", "a part": '{"run_config": {}}'}.get(content):
        (path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"resume = .*is not the folder of a run"):
        run(config_of(tmp_path, resume=str(path)))


def test_a_running_run_is_neither_resumed_nor_deleted(folder: Path) -> None:
    with locked(folder):
        with pytest.raises(CheckpointError, match="another process is running the run"):
            run(config_of(folder.parent, resume=str(folder)), 2)
        with pytest.raises(CheckpointError, match="another process is running the run"):
            delete_run(folder)
    assert (folder / "config.json").exists()
