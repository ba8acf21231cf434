"""The task's images in memory that the server process shares with its workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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

    This process uses the shared images, too. Data that stays in its files is not moved.
    """
    task, folder = get_task(settings.task), settings.data_path
    shared = tuple(_shared(split) for split in load_splits(task, folder))
    use = partial(_use_shared, settings.task, folder, shared)
    use()
    return use


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
