"""Write a Flower app around this package: the folder that `flwr run` needs."""

from __future__ import annotations

import json
import keyword
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError

_PROJECT = """\
# A Flower app: `flwr run . --stream --federation-config "num-supernodes=10"`.

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0.0"
description = "FixBN on {task}"
license = "Apache-2.0"
dependencies = ["fixbn-flwr[app,simulation]>={version}"]

[tool.hatch.build.targets.wheel]
packages = ["{module}"]

[tool.flwr.app]
publisher = "fixbn"

[tool.flwr.app.components]
serverapp = "{module}.server_app:app"
clientapp = "{module}.client_app:app"

[tool.flwr.app.config]
{config}
"""

# Flower looks for the assignments, without running the files.
_PARTS = {
    "__init__.py": '"""A Flower app around fixbn_flwr."""\n',
    "server_app.py": '"""The ServerApp: FixBN around FedAvg."""\n\n'
    "from fixbn_flwr.app import server_app\n\napp = server_app.app\n",
    "client_app.py": '"""The ClientApp, which trains on its node\'s images."""\n\n'
    "from fixbn_flwr.app import client_app\n\napp = client_app.app\n",
}

_TASK = '''"""The task: data, models, loss and metric. Replace the digits by your own data.

docs/your-own-data.md of fixbn-flwr explains every field.
"""

from dataclasses import replace

from fixbn_flwr.tasks.digits import TASK as DIGITS

TASK = replace(DIGITS, name="{name}")
'''


def write_app(folder: Path, module: str, run_config: Mapping[str, Value]) -> None:
    """Write an app whose ServerApp and ClientApp are this package's.

    Args:
        folder: The folder, which is created.
        module: The name of the app's Python package.
        run_config: The values of its run config that differ from the defaults.
    """
    package = folder / module
    package.mkdir(parents=True)
    for file, text in _PARTS.items():
        (package / file).write_text(text, encoding="utf-8")
    config = {**Settings().as_run_config(), **run_config}
    lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in config.items())
    project = _PROJECT.format(
        name=module.replace("_", "-"),
        module=module,
        version=version("fixbn-flwr"),
        task=run_config.get("task", "digits"),
        config="\n".join(lines),
    )
    (folder / "pyproject.toml").write_text(project, encoding="utf-8")


@contextmanager
def temporary_app() -> Iterator[Path]:
    """Yield the folder of an app whose ServerApp and ClientApp are this package's."""
    with tempfile.TemporaryDirectory(prefix="fixbn-app-") as folder:
        app = Path(folder) / "app"
        write_app(app, "fixbn_app", {})
        yield app


def new_app(folder: Path, task_file: Path | None) -> Path:
    """Write an app around a user's own task; return its task file.

    Args:
        folder: The app's folder. It must not exist, or be empty.
        task_file: A Python file that defines ``TASK``, to copy. Default: a file to start from.

    Raises:
        ConfigError: If the folder is in use, cannot be written or has a name that no new package
            can have, or there is no such file.
    """
    module = folder.name.replace("-", "_").lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", module):
        raise ConfigError(
            f"{folder.name!r} cannot name a Python package: use at most 31 letters, digits and "
            "'-', and begin with a letter."
        )
    known = find_spec(module)
    if keyword.iskeyword(module) or (known and known.origin):  # a folder has no origin
        raise ConfigError(
            f"{module!r} is a Python keyword, or the name of an installed package: choose another "
            "name for the folder."
        )
    target = folder / module / "task.py"
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} exists and is not empty: name a new folder.")
        if task_file is not None and not task_file.is_file():
            raise ConfigError(f"{task_file} is no file: name the Python file that defines TASK.")
        write_app(folder, module, {"task": f"{module}.task:TASK", "model": ""})
        if task_file is None:
            target.write_text(_TASK.format(name=module), encoding="utf-8")
        else:
            shutil.copyfile(task_file, target)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot become an app ({error}): name a new folder in one that you can "
            "write, and a task file that you can read."
        ) from error
    return target
