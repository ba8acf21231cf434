"""The task's images in memory that the server process shares with its workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.engine.shared_memory import Place, SharedMemory
from fixbn_flwr.tasks import (
    DataOptions,
    DataTask,
    Split,
    find_task,
    get_task,
    load_splits,
    use_classes,
    use_splits,
)


def share_data(settings: Settings) -> Callable[[], None]:
    """Load a run's data, move it to shared memory, and return what a worker calls to use it.

    This process uses the shared images, too. Images that stay in files are not moved: each worker
    lists the files itself.
    """
    options = settings.data_options
    if not isinstance(find_task(settings.task), DataTask):
        options = DataOptions(options.data_dir)  # the seed, say, does not change its data
    return _share(settings.task, options)


@lru_cache(maxsize=1)  # two runs in one process share the memory
def _share(name: str, options: DataOptions) -> Callable[[], None]:
    task = get_task(name, options)
    splits = load_splits(task, options.data_dir)
    if not all(isinstance(split.images, Tensor) for split in splits):
        return partial(_load, name, options, task.class_names)
    use = partial(_use_shared, name, options, task.class_names, tuple(map(_shared, splits)))
    use()
    return use


def _load(name: str, options: DataOptions, class_names: tuple[str, ...]) -> None:
    use_classes(name, options, class_names)
    load_splits(get_task(name, options), options.data_dir)


def _use_shared(
    name: str, options: DataOptions, class_names: tuple[str, ...], shared: tuple[Any, ...]
) -> None:
    use_classes(name, options, class_names)
    train, test = (Split(*(_as_tensor(value) for value in values)) for values in shared)
    use_splits(get_task(name, options), options.data_dir, (train, test))


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
