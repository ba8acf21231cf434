"""Flower apps in folders: what is refused before anything starts, and with which remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixbn_flwr.app import app_folder
from fixbn_flwr.app.app_folder import AppFolder
from fixbn_flwr.errors import ConfigError

PROJECT = """
[tool.flwr.app.components]
serverapp = "{package}:server"
clientapp = "{package}:client"

[tool.flwr.app.config]
rate = 0.5
use-gpu = true
workers = 3
name = "a"
nested.key = 1
"""
APPS = """
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server, client = ServerApp(), ClientApp()
"""


@pytest.fixture
def app(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An app in a package of its own name, since a process imports each name once."""
    package = f"apps_of_{abs(hash(request.node.name))}"
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(package=package))
    (tmp_path / f"{package}.py").write_text(APPS)
    return tmp_path


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """The run configs of the federations that would start."""
    started: list[dict[str, object]] = []
    monkeypatch.setattr(
        app_folder, "run_federation", lambda *_, run_config, **__: started.append(run_config)
    )
    return started


def test_arguments_change_the_apps_config(app: Path, configs: list[dict[str, object]]) -> None:
    words = ["rate=2", "use-gpu=false", "workers=5", "name=7", "nested.key=4"]
    AppFolder(app).run(words, 2, None)
    assert configs == [{"rate": 2, "use-gpu": False, "workers": 5, "name": "7", "nested.key": 4}]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "use-gpu=False",
            "use-gpu = 'False' has the type str, but the app's default True has the type bool",
        ),
        ("workers=five", "workers = 'five' has the type str"),
        ("workers=0.5", "workers = 0.5 has the type float"),
        ("use-gpu=1", "use-gpu = 1 has the type int"),
        (
            "rat=1",
            r"rat: not in the app's \[tool.flwr.app.config\]; did you mean rate\?\n"
            "  The keys are name, nested.key, rate, use-gpu, workers.",
        ),
    ],
)
def test_a_value_of_another_type_or_key_is_refused(
    word: str, message: str, app: Path, configs: list[dict[str, object]]
) -> None:
    with pytest.raises(ConfigError, match=message):
        AppFolder(app).run([word], 2, None)
    assert configs == []


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "server = client = 3",
            r"has the type int, not ServerApp: correct \[tool.flwr.app.components",
        ),
        ("import nothing_here", "cannot be imported .*nothing_here.*install what the app needs"),
        ("server = (", "cannot be imported .SyntaxError: '\\(' was never closed"),
        ("", "cannot be imported .*has no attribute 'server'"),
    ],
)
def test_a_component_that_is_no_app_is_refused(code: str, message: str, app: Path) -> None:
    (file,) = app.glob("*.py")
    file.write_text(code)
    with pytest.raises(ConfigError, match=message):
        AppFolder(app).run([], 2, None)


@pytest.mark.parametrize("text", [None, "not toml [", "[project]\nname = 'a'"])
def test_a_folder_without_an_app_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"does not describe a Flower app .*: name the directory"):
        AppFolder(tmp_path)
