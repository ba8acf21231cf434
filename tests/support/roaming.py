"""A task whose clients, in a Ray cluster of two nodes, do not stay where they are.

There are three, each with digits of its own, two nodes with room for one each, and one local step a
round. In odd rounds client 1 holds its node until client 2 has trained, in even ones client 0: so
client 2 follows now one, now the other. Each writes down where it trained. Without a cluster they
train as clients ever do.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import ray
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fixbn_flwr.tasks import Split, Task, get_task, load_splits
from fixbn_flwr.tasks.task import accuracy
from tests.support.waiting import wait_until

CLIENTS = 3
_DIGITS = get_task("digits")


class Places:
    """Where clients have trained: a file for each, a line a round with the node of that round."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def load(self, data_dir: Path | None) -> tuple[Split, Split]:
        self._folder = data_dir
        train, test = load_splits(_DIGITS)
        assert isinstance(train.targets, Tensor)
        return Split(train.images, train.targets, clients_of(train.targets)), test

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        trains = not torch.is_inference_mode_enabled()
        if trains and ray.is_initialized():
            self._visit(int(clients_of(targets)[0]))
        return cross_entropy(outputs, targets)

    def _visit(self, client: int) -> None:
        folder = self._folder
        assert folder is not None
        visits = len(read(folder, client))
        if client == (visits + 1) % 2:
            wait_until(
                lambda: len(read(folder, 2)) > visits, f"client 2 trained in round {visits + 1}"
            )
        with (folder / str(client)).open("a") as file:
            file.write(f"{ray.get_runtime_context().get_node_id()}\n")


def clients_of(targets: Tensor) -> Tensor:
    """Which client has a digit: 0 to 2, 3 to 5, and 6 to 9."""
    return (targets // 3).clamp(max=CLIENTS - 1)


def read(folder: Path, client: int) -> list[str]:
    """The nodes on which a client has trained so far, in the order of its rounds."""
    file = folder / str(client)
    return file.read_text().splitlines() if file.exists() else []


_PLACES = Places()

TASK = Task(
    name="roaming",
    classes=_DIGITS.classes,
    load=_PLACES.load,
    models=_DIGITS.models,
    mean=_DIGITS.mean,
    std=_DIGITS.std,
    augment=None,
    loss=_PLACES.loss,
    metric=partial(accuracy, _DIGITS.classes),
)
