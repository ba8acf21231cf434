"""Any task, tested on held-out training images: the search for learning rates uses it.

`simulation.experiments.held_out_task:cifar10` is the task after the colon (see
`fixbn_flwr.tasks.get_task`) with every n-th training image in place of its test images. So the test
images decide nothing but the result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fixbn_flwr.tasks import Split, Task, get_task, load_splits
from fixbn_flwr.tasks.task import Stored

AT_MOST = 2000  # held-out images
SHARE = 5  # at most one in five images is held out


@dataclass(frozen=True)
class _Chosen:
    """A selection of stored images, which are read from files on access."""

    stored: Stored
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Tensor | slice, /) -> Tensor:
        return self.stored[self.indices[indices]]


def choose(split: Split, indices: Tensor) -> Split:
    """Return the images of a split with these indices, int64 `[n]`."""

    def of(stored: Stored) -> Stored:
        return stored[indices] if isinstance(stored, Tensor) else _Chosen(stored, indices)

    return Split(
        of(split.images),
        of(split.targets),
        None if split.groups is None else split.groups[indices],
    )


def held_out(task: Task) -> Task:
    """Return the task with every n-th training image in place of its test images."""

    def load(data_dir: Path | None) -> tuple[Split, Split]:
        train, _ = load_splits(task, data_dir)
        places = torch.arange(len(train))
        tested = places % max(SHARE, -(-len(train) // AT_MOST)) == 0
        return choose(train, places[~tested]), choose(train, places[tested])

    return replace(task, name=f"{task.name}-held-out", load=load)


@cache
def __getattr__(name: str) -> Task:
    if name.startswith("__"):
        raise AttributeError(name)
    return held_out(get_task(name))
