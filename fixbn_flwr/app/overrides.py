"""Read the KEY=VALUE arguments of the command line."""

from __future__ import annotations

import re
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.reader import read_config
from fixbn_flwr.errors import ConfigError

_OPTIONS = ("clients", "workers", "engine")  # of the command line
_PATHS = ("resume", "data-dir", "state-dir", "output-dir", "pretrained")
_FOLDER = re.compile(r"hf:(?P<path>[.~][^:]*)(?P<subset>.*)")  # a relative path in `task`


def read_settings(overrides: Sequence[str] | None, label: str | None = None) -> Settings:
    """Return the run config of a command, with absolute paths, output folder and run name.

    Args:
        overrides: The arguments. A resumed run starts with its previous config.
        label: The method in the name of the run folder. Default: that of the config.

    Raises:
        ConfigError: If an argument is not valid.
    """
    given = given_config(overrides or [])
    if resumed := given.get("resume"):
        before: dict[str, Value] = read_config(Path(str(resumed)))["run_config"]
        return Settings.from_run_config({**before, "may-change": "", **given})
    given["output-dir"] = given.get("output-dir") or absolute("output-dir", "runs")
    settings = Settings.from_run_config(given)
    if settings.run_name:
        return settings
    method = (label or settings.method).replace(" ", "-")
    # Random digits, because another run may start in the same second.
    now = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    name = f"{now}-{settings.task_name}-{method}"
    return variant(settings, {"run-name": name})


def given_config(overrides: Sequence[str]) -> dict[str, Value]:
    """Return the keys of KEY=VALUE arguments with their values, and with absolute paths.

    Raises:
        ConfigError: If an argument is no setting.
    """
    defaults = Settings().as_run_config()
    given = dict(key_and_value(word, defaults) for word in overrides)
    for key in _PATHS:
        if given.get(key):
            given[key] = absolute(key, str(given[key]))
    folder = _FOLDER.fullmatch(str(given.get("task")))
    if folder and not given.get("data-dir"):  # with it, the path is one in data-dir
        given["task"] = f"hf:{absolute('task', folder['path'])}{folder['subset']}"
    return given


def check_new(settings: Settings) -> None:
    """Check that settings do not resume a run.

    Raises:
        ConfigError: If they do.
    """
    if settings.resume:
        raise ConfigError("resume: only `fixbn run` can resume a run; remove it here.")


def variant(settings: Settings, changes: Mapping[str, Value]) -> Settings:
    """Return settings with other values of some keys."""
    return Settings.from_run_config({**settings.as_run_config(), **changes})


def absolute(key: str, path: str) -> str:
    """Return a path from the command line as an absolute one."""
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise ConfigError(
            f"{key} = {path!r}: {error} Write an absolute path, or ~/ for your own home."
        ) from error


def key_and_value(argument: str, defaults: Mapping[str, object]) -> tuple[str, Value]:
    """Split KEY=VALUE; the value is TOML, or text.

    Args:
        argument: The argument.
        defaults: The default of each key. The value of one with a text stays text.
    """
    key, equals, text = argument.partition("=")
    if not equals:
        raise ConfigError(f"{argument!r} is not a setting: write KEY=VALUE, such as task=cifar10.")
    if key in _OPTIONS and key not in defaults:
        raise ConfigError(f"{key} is an option, not a key of the run config: write --{key} {text}.")
    value: Value = text
    with suppress(ValueError):
        value = float(text)  # also .5, which is not TOML
    with suppress(ValueError, RecursionError):  # not TOML, or thousands of digits or brackets
        value = tomllib.loads(f"value = {text}")["value"]
    if isinstance(defaults.get(key), str) and not isinstance(value, str):
        value = text  # a name, as in run-name=2026
    return key, value
