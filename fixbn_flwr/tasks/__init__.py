"""Look up a task by name and load its data.

A built-in task is one file of this package, such as `tiny_imagenet.py` for `tiny-imagenet`. A
user's own task is named like a Flower app: `package.module:NAME`. Only the chosen task is imported.

Some tasks are for any data: `folder`, `folder-segmentation` and `hf:NAME`. `find_task` returns
what is known without their data, `get_task` reads their classes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Literal

from fixbn_flwr.errors import ConfigError, FixBNError
from fixbn_flwr.tasks.data_task import DataOptions, DataTask
from fixbn_flwr.tasks.task import Split, Task, normalise

__all__ = [
    "DATA_TASKS",
    "TASKS",
    "DataOptions",
    "DataTask",
    "Split",
    "Task",
    "check_not_empty",
    "find_task",
    "forget_splits",
    "get_task",
    "load_splits",
    "normalise",
    "use_classes",
    "use_splits",
]

# Each is a module of this package that defines `TASK`; its name has `_` instead of `-`.
TASKS = (
    "digits",
    "cifar10",
    "tiny-imagenet",
    "femnist",
    "pacs",
    "camvid",
    "cityscapes",
)

# Each is a module of this package that defines a `DataTask`.
DATA_TASKS = ("folder", "folder-segmentation")

_HUGGING_FACE = "hf"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def find_task(name: str) -> Task | DataTask:
    """Return a task without reading its data.

    Args:
        name: One of `TASKS` or `DATA_TASKS`, `hf:NAME`, or `package.module:NAME` for a user's own
            task.

    Raises:
        ConfigError: If there is no such task, or it cannot be imported.
    """
    module, _, rest = name.partition(":")
    if module == _HUGGING_FACE and name != module:
        return _hugging_face(name)
    if ":" in name:
        return _own_task(module, rest)
    if name not in (*TASKS, *DATA_TASKS):
        raise ConfigError(
            f"task is {name!r}, which does not exist: choose one of"
            f" {', '.join((*TASKS, *DATA_TASKS))}, hf:NAME for a data set of Hugging Face, or"
            " package.module:NAME for your own task."
        )
    task: Task | DataTask = import_module(f"{__name__}.{name.replace('-', '_')}").TASK
    return task


@lru_cache(maxsize=8)
def _hugging_face(name: str) -> DataTask:
    from fixbn_flwr.tasks.hugging_face import data_task

    return data_task(name)


def get_task(name: str, options: DataOptions | None = None) -> Task:
    """Return a task; of a task for any data, read its classes, once per process.

    Args:
        name: See `find_task`.
        options: How a task for any data reads it. Default: `DataOptions()`.

    Raises:
        ConfigError: If there is no such task, it cannot be imported, or its data cannot be read.
    """
    task = find_task(name)
    if isinstance(task, Task):
        return task
    key = task, options or DataOptions()
    if key not in _tasks:
        _tasks[key] = task.of(key[1])
    return _tasks[key]


def use_classes(name: str, options: DataOptions, class_names: tuple[str, ...]) -> None:
    """Let ``get_task`` return a task for any data with these classes, and not read them."""
    task = find_task(name)
    if isinstance(task, DataTask) and (task, options) not in _tasks:
        _tasks[task, options] = task.of(options, class_names)


_tasks: dict[tuple[DataTask, DataOptions], Task] = {}


def _own_task(module: str, attribute: str) -> Task:
    try:
        task = getattr(import_module(module), attribute)
    # The user's module can raise anything.
    except Exception as error:
        raise ConfigError(
            f"{module}:{attribute} cannot be imported ({type(error).__name__}: {error}): install"
            " its package, or add the full path of its folder to PYTHONPATH, on the server and on"
            " every client."
        ) from error
    if not isinstance(task, Task):
        raise ConfigError(
            f"{module}:{attribute} is a {type(task).__name__}: name a fixbn_flwr.tasks.Task."
        )
    if not _NAME.fullmatch(task.name):
        raise ConfigError(
            f"{module}:{attribute} has the name {task.name!r}, which also names run folders: use"
            " only letters, digits, '_' and '-'."
        )
    if len(task.class_names) not in (0, task.classes):
        raise ConfigError(
            f"{module}:{attribute} has {len(task.class_names)} class_names, but {task.classes}"
            " classes: name each class, or none."
        )
    return task


def load_splits(task: Task, data_dir: Path | None = None) -> tuple[Split, Split]:
    """Load a task's training and test data, once per process.

    All callers share the result. Do not modify it.

    Args:
        task: The task.
        data_dir: The folder with the data, or None for the task's default.

    Returns:
        `(train, test)`.

    Raises:
        ConfigError: If the data is missing or invalid.
    """
    key = (task, _resolved(data_dir))
    if key not in _loaded:
        _loaded[key] = _load(*key)
    return _loaded[key]


def use_splits(task: Task, data_dir: Path | None, splits: tuple[Split, Split]) -> None:
    """Let ``load_splits`` return these splits in this process, which need not load them."""
    _loaded[task, _resolved(data_dir)] = splits


def forget_splits() -> None:
    """Free the data that this process has loaded."""
    _loaded.clear()


_loaded: dict[tuple[Task, Path | None], tuple[Split, Split]] = {}


def _resolved(data_dir: Path | None) -> Path | None:
    return None if data_dir is None else data_dir.expanduser().resolve()


def _load(task: Task, data_dir: Path | None) -> tuple[Split, Split]:
    try:
        loaded = task.load(data_dir)
    except FixBNError:
        raise
    except Exception as error:  # a user's own task can raise anything
        raise _bad_data(task, f"cannot be loaded ({type(error).__name__}: {error})") from error
    if not (
        isinstance(loaded, tuple) and len(loaded) == 2 and all(isinstance(s, Split) for s in loaded)
    ):
        raise _bad_data(task, f"is a {type(loaded).__name__}, not a pair of Splits")
    for split in loaded:
        labels = split.labels
        if len(split) != len(split.targets) or not any(map(len, loaded)):
            raise _bad_data(task, f"has {len(split)} images and {len(split.targets)} targets")
        if labels.size and not 0 <= labels.min() <= labels.max() < task.classes:
            raise _bad_data(
                task,
                f"has classes {labels.min()} to {labels.max()}, but the task has {task.classes}"
                " classes, counted from 0",
            )
    return loaded


def check_not_empty(task: Task, split: Split, what: Literal["training", "test"]) -> None:
    """Check that a split has images. Only the server needs test images, and only clients others.

    Raises:
        ConfigError: If it has none.
    """
    if not len(split):
        raise ConfigError(f"the data of task {task.name} has no {what} images: add some.")


def _bad_data(task: Task, what: str) -> ConfigError:
    return ConfigError(
        f"the data of task {task.name} {what}: its load function must return (train, test), two"
        " Splits that have images and a target for each."
    )
