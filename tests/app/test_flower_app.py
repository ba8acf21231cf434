"""The Flower app that `fixbn new` and `--engine ray` write."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fixbn_flwr.app.app_folder import AppFolder, load
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.flower_app import new_app, write_app
from fixbn_flwr.errors import ConfigError
from tests.support.pages import ROOT

TASK = """
from dataclasses import replace
from fixbn_flwr.tasks.digits import TASK as DIGITS

TASK = replace(DIGITS, name="mine")
"""


def test_the_app_has_every_key_with_its_default(tmp_path: Path) -> None:
    write_app(tmp_path / "app", "some_app", {"seed": 3})
    project = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())
    config = project["tool"]["flwr"]["app"]["config"]
    assert config == {**Settings().as_run_config(), "seed": 3}
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert config.keys() == own.keys()


def test_its_components_are_those_of_this_package(tmp_path: Path) -> None:
    from fixbn_flwr.app import client_app, server_app

    write_app(tmp_path, "components_app", {})
    assert load(tmp_path, "components_app.server_app:app", ServerApp) is server_app.app
    assert load(tmp_path, "components_app.client_app:app", ClientApp) is client_app.app


@pytest.mark.parametrize("own", [True, False])
def test_a_new_app_runs_with_the_users_task(
    own: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(TASK)
    folder = tmp_path / f"my-{own}".lower()
    written = new_app(folder, file if own else None)
    assert written == folder / folder.name.replace("-", "_") / "task.py"
    runs = f"output-dir={tmp_path / 'runs'}"
    AppFolder(folder).run(["num-server-rounds=2", runs, "run-name=run"], clients=2, workers=1)
    assert "round 2/2" in capsys.readouterr().out
    assert (tmp_path / "runs" / "run" / "summary.json").is_file()


@pytest.mark.parametrize("name", ["1st", "two words", "a" * 40, "ü"])
def test_a_folder_that_cannot_name_a_package_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a Python package"):
        new_app(tmp_path / name, None)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["random", "class", "Torch"])
def test_a_folder_named_like_a_package_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'{name.lower()}' is a Python keyword, or the name of"):
        new_app(tmp_path / name, None)
    assert not any(tmp_path.iterdir())


def test_a_folder_with_files_and_a_missing_task_are_refused(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ConfigError, match="is not empty: name a new folder"):
        new_app(tmp_path / "used", None)
    with pytest.raises(ConfigError, match="is no file: name the Python file"):
        new_app(tmp_path / "other", tmp_path / "nothing.py")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["file", "file/app"])
def test_a_folder_that_cannot_be_written_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"{name} cannot become an app \(.*: name a new folder"):
        new_app(tmp_path / name, None)


def test_a_path_may_have_any_character(tmp_path: Path) -> None:
    write_app(tmp_path / "app", "app", {"data-dir": "/data/🩻"})
    project = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["flwr"]["app"]["config"]["data-dir"] == "/data/🩻"
