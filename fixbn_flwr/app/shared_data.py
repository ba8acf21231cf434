"""The task's images in memory that the server process shares with its workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.engine.shared_memory import Place, SharedMemory
from fixbn_flwr.tasks import Split, get_task, load_splits, use_splits


def share_data(settings: Settings) -> Callable[[], None]:
    """Load a run's data, move it to shared memory, and return what a worker calls to use it.

    This process uses the shared images, too. Images that stay in files are not moved: each worker
    lists the files itself.
    """
    return _share(settings.task, settings.data_path)


@lru_cache(maxsize=1)  # two runs in one process share the memory
def _share(task: str, folder: Path | None) -> Callable[[], None]:
    splits = load_splits(get_task(task), folder)
    if not all(isinstance(split.images, Tensor) for split in splits):
        return partial(_load, task, folder)
    use = partial(_use_shared, task, folder, tuple(map(_shared, splits)))
    use()
    return use


def _load(task: str, folder: Path | None) -> None:
    load_splits(get_task(task), folder)


def _use_shared(task: str, folder: Path | None, shared: tuple[Any, ...]) -> None:
    train, test = (Split(*(_as_tensor(value) for value in values)) for values in shared)
    use_splits(get_task(task), folder, (train, test))


def _shared(split: Split) -> list[Any]:
    return [_in_memory(v) for v in (split.images, split.targets, split.groups)]


def _in_memory(value: Any) -> Any:
    """Return a tensor's place in shared memory; another value as it is."""
    if not isinstance(value, Tensor):
        return value
    array = value.contiguous().numpy()
    memory = SharedMemory()
    (place,) = memory.write([array.reshape(-1).view(np.uint8).data])
    return memory, place, array.dtype.str, array.shape


def _as_tensor(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    memory: SharedMemory
    place: Place
    memory, place, dtype, shape = value
    return torch.from_numpy(np.frombuffer(memory.read(place), dtype).reshape(shape))
