"""The app passes the checks of Flower's hub; tests do not travel in it, README and licence do."""

from __future__ import annotations

import io
import re
import subprocess
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

from tests.support.pages import ROOT, page

# Of the package that Flower reads .gitignore with.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

publish = import_module("flwr.cli.app_cmd.publish")  # its package has a function of this name


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """The folder that the page's first command makes, of the files as they are now."""
    (command,) = re.findall(r"^git archive (.*)$", page("publish.md"), re.MULTILINE)
    names, _, target = command.partition(" | tar -x -C ")
    copied = tmp_path / target
    copied.mkdir(parents=True)
    words = names.split()
    assert words[0] == "HEAD"
    subprocess.run(["cp", "-r", *words[1:], copied], cwd=ROOT, check=True)
    for compiled in copied.rglob("__pycache__"):
        subprocess.run(["rm", "-r", compiled], check=True)
    return copied


def test_the_app_passes_flowers_own_checks(app: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checks of `flwr app publish`, in its order; it uploads after them."""
    config, _ = load_and_validate(app / "pyproject.toml", check_module=False)
    publish._validate_app_name(app.name, "Flower App directory name")
    publish._validate_description(config["project"]["description"])
    files = publish._collect_file_paths(app)
    publish._validate_files(files)
    assert "Validation passed" in capsys.readouterr().out
    names = {file.relative_to(app.resolve()).as_posix() for file in files}
    assert {"LICENSE", "README.md", "pyproject.toml"} < names
    others = names - {"LICENSE", "README.md", "pyproject.toml"}
    assert {name.partition("/")[0] for name in others} == {"fixbn_flwr"}


def test_what_flower_builds_has_readme_and_licence_but_no_tests() -> None:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))) as built:
        names = set(built.namelist())
    assert {"LICENSE", "README.md", "pyproject.toml", "fixbn_flwr/app/server_app.py"} < names
    top = {name.partition("/")[0] for name in names}
    assert top == {".info", "LICENSE", "README.md", "pyproject.toml", "fixbn_flwr"}
