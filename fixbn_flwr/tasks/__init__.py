"""The tasks that come with the app, one file each; only the one asked for is imported."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks.task import Split, Task, normalise

__all__ = ["TASKS", "Split", "Task", "get_task", "load_splits", "normalise"]

TASKS = ("digits", "cifar10")  # each is a module of this package that defines `TASK`


def get_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(
            f"task is {name!r}, which does not exist: choose one of {', '.join(TASKS)}."
        )
    task: Task = import_module(f"{__name__}.{name}").TASK
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
    return task.load(data_dir)
