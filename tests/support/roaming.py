"""A task whose clients move between the nodes of a Ray cluster of two nodes.

There are three clients, each with its own digits, and one local step per round. Each node has room
for one client. In odd rounds client 1 occupies its node until client 2 has trained, and in even
rounds client 0 does. So client 2 runs on changing nodes. Each client records the node of each
round. Without a cluster the clients train as usual.
"""

from __future__ import annotations

from pathlib import Path

import ray
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fixbn_flwr.tasks import Split, Task, get_task, load_splits
from fixbn_flwr.tasks.metrics import Accuracy
from tests.support.waiting import wait_until

CLIENTS = 3
_DIGITS = get_task("digits")


class Places:
    """Records where clients train: one file per client, with one line, its node, per round."""

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
    """Return which client has a digit: 0 to 2, 3 to 5, or 6 to 9."""
    return (targets // 3).clamp(max=CLIENTS - 1)


def read(folder: Path, client: int) -> list[str]:
    """Return the nodes on which a client has trained so far, in the order of rounds."""
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
    metric=Accuracy,
)
