"""A task whose nodes train at the test's word: one order, one local step.

In each step a node touches `~/waiting` and waits for the file `~/order`, which holds what it is to
do: "train"; "nothing", a step with a gradient of zero; "fail", to raise; "flood", to reply with 20
MB that nobody has asked for. The digits are
scikit-learn's, a node's own those that the file `part` of its data folder says, as in "0/3".
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fixbn_flwr.tasks import Split, Task, get_task, load_splits
from fixbn_flwr.tasks.task import accuracy
from fixbn_flwr.transport.packing import Packer


def load(data_dir: Path | None) -> tuple[Split, Split]:
    assert data_dir is not None
    own, parts = map(int, (data_dir / "part").read_text().split("/"))
    train, test = load_splits(get_task("digits"))
    every = slice(own, None, parts)
    return Split(train.images[every], train.targets[every]), test


def network(norm: str) -> nn.Module:
    """Eight arrays, since every array of a message takes its time."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


def at_the_tests_word(outputs: Tensor, targets: Tensor) -> Tensor:
    loss = cross_entropy(outputs, targets)
    if torch.is_inference_mode_enabled():  # the server's evaluation
        return loss
    waiting, order = Path.home() / "waiting", Path.home() / "order"
    waiting.touch()
    while not order.exists():
        time.sleep(0.05)
    word = order.read_text()
    order.unlink()
    waiting.unlink()
    if word == "fail":
        raise RuntimeError("the disk is full")
    if word == "flood":
        flood()
    return loss * (0.0 if word == "nothing" else 1.0)


def flood() -> None:
    """Let all replies of this process carry more than a server should take."""
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
    loss=at_the_tests_word,
    metric=partial(accuracy, 10),
)
