"""A task whose nodes train when a test orders it: each order is one local step.

In each step a node creates the file `~/waiting` and waits for the file `~/order`. That file holds
one of these orders:

- "train": an ordinary step
- "nothing": a step with a gradient of zero
- "fail": raise an error
- "flood": add 20 MB to the reply

The images are scikit-learn's digits. The file `part` in a node's data folder says which of them the
node has, for example "0/3".
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fixbn_flwr.tasks import Split, Task, get_task, load_splits
from fixbn_flwr.tasks.metrics import Accuracy
from fixbn_flwr.transport.packing import Packer


def load(data_dir: Path | None) -> tuple[Split, Split]:
    assert data_dir is not None
    own, parts = map(int, (data_dir / "part").read_text().split("/"))
    train, test = load_splits(get_task("digits"))
    every = slice(own, None, parts)
    return Split(train.images[every], train.targets[every]), test


def network(norm: str) -> nn.Module:
    """Return a model of only eight arrays, since each array of a message takes time."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


def ordered_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    loss = cross_entropy(outputs, targets)
    if torch.is_inference_mode_enabled():  # the server's evaluation
        return loss
    waiting, file = Path.home() / "waiting", Path.home() / "order"
    waiting.touch()
    while not file.exists():
        time.sleep(0.05)
    order = file.read_text()
    file.unlink()
    waiting.unlink()
    if order == "fail":
        raise RuntimeError("the disk is full")
    if order == "flood":
        flood()
    return loss * (0.0 if order == "nothing" else 1.0)


def flood() -> None:
    """Make all later replies of this process larger than a server accepts."""
    honest = Packer.pack

    def pack(packer: Packer, content: RecordDict) -> RecordDict:
        packed = honest(packer, content)
        packed["flood"] = ConfigRecord({"flood": bytes(20 * 10**6)})
        return packed

    Packer.pack = pack  # type: ignore[method-assign]


TASK = Task(
    name="ordered",
    classes=10,
    load=load,
    models={"tiny": network},
    mean=(4.9,),
    std=(6.0,),
    augment=None,
    loss=ordered_loss,
    metric=Accuracy,
)
