"""Tasks by name, those that come with the app and users' own; only the one asked for is imported.

Each that comes with the app is one file here, `tiny_imagenet.py` for `tiny-imagenet`. A user's own
is named as Flower names an app: `package.module:NAME`.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path

from fixbn_flwr.errors import ConfigError, FixBNError
from fixbn_flwr.tasks.task import Split, Task, normalise

__all__ = ["TASKS", "Split", "Task", "get_task", "load_splits", "normalise"]

# Each is a module of this package, with `_` for `-`, that defines `TASK`.
TASKS = (
    "digits",
    "cifar10",
    "tiny-imagenet",
    "femnist",
    "pacs",
    "camvid",
    "cityscapes",
)

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def get_task(name: str) -> Task:
    """The task called `name`: one of `TASKS`, or `package.module:NAME` for a user's own.

    Raises:
        ConfigError: there is no such task, or it cannot be imported.
    """
    if ":" in name:
        return _own_task(*name.split(":", 1))
    if name not in TASKS:
        raise ConfigError(
            f"task is {name!r}, which does not exist: choose one of {', '.join(TASKS)}, or"
            " package.module:NAME for a task of your own."
        )
    task: Task = import_module(f"{__name__}.{name.replace('-', '_')}").TASK
    return task


def _own_task(module: str, attribute: str) -> Task:
    try:
        task = getattr(import_module(module), attribute)
    # Whatever a user's file raises is a mistake in it, or something that it misses here.
    except Exception as error:
        raise ConfigError(
            f"{module}:{attribute} cannot be imported ({type(error).__name__}: {error}); a task of"
            " your own is package.module:NAME, and its package is installed, or its folder named"
            " with its full path in PYTHONPATH, wherever server and clients run"
        ) from error
    if not isinstance(task, Task):
        raise ConfigError(
            f"{module}:{attribute} is of type {type(task).__name__}; name a fixbn_flwr.tasks.Task"
        )
    if not _NAME.fullmatch(task.name):
        raise ConfigError(
            f"{module}:{attribute} has the name {task.name!r}, but run folders are called so; use"
            " letters, digits, '_' and '-' only"
        )
    return task


def load_splits(task: Task, data_dir: Path | None = None) -> tuple[Split, Split]:
    """The task's `(train, test)`, read once per process and then shared: do not write to it.

    Args:
        task: the task whose data to read.
        data_dir: the folder that holds the data; None for the task's default.

    Raises:
        ConfigError: the data is not there and cannot be had.
    """
    return _load_once(task, None if data_dir is None else data_dir.expanduser().resolve())


@cache
def _load_once(task: Task, data_dir: Path | None) -> tuple[Split, Split]:
    try:
        loaded = task.load(data_dir)
    except FixBNError:
        raise
    except Exception as error:  # whatever a user's own task raises
        raise _bad_data(task, f"cannot be loaded ({type(error).__name__}: {error})") from error
    if not (
        isinstance(loaded, tuple) and len(loaded) == 2 and all(isinstance(s, Split) for s in loaded)
    ):
        raise _bad_data(task, f"is a {type(loaded).__name__}, not a pair of Splits")
    for split in loaded:
        labels = split.labels
        if not len(split) or len(split) != len(split.targets):
            raise _bad_data(task, f"has {len(split)} images and {len(split.targets)} targets")
        if labels.size and not 0 <= labels.min() <= labels.max() < task.classes:
            raise _bad_data(
                task,
                f"has classes {labels.min()} to {labels.max()}, and the task has {task.classes},"
                " counted from 0",
            )
    return loaded


def _bad_data(task: Task, what: str) -> ConfigError:
    return ConfigError(
        f"the data of task {task.name} {what}: its load must return (train, test), two Splits of"
        " images that are there, each with its target."
    )
