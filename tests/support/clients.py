"""Clients for the in-memory grid, written as users write them, and helpers of their tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from fixbn_flwr import local_training
from fixbn_flwr.flower_compat import Mod


def initial_arrays(model: nn.Module) -> ArrayRecord:
    return ArrayRecord(model.state_dict())


def partition_of(context: Context) -> int:
    return int(context.node_config["partition-id"])


Batch = tuple[Tensor, Tensor]
TrainStep = Callable[[nn.Module, Optimizer, Batch], None]


def sgd_step(model: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
    """Take one step of an ordinary training loop, including `model.train()`."""
    images, targets = batch
    model.train()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), targets).backward()
    optimizer.step()


def training_app(
    build: Callable[[], nn.Module],
    batches: Callable[[int, int], Sequence[Batch]],
    *,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    step: TrainStep = sgd_step,
    optimizer_of: Callable[[nn.Module], Optimizer] | None = None,
    examples: Sequence[int] | None = None,
    on_reply: Callable[[int, int, nn.Module, RecordDict], None] = lambda *_: None,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """Return a Message API client with its own model, SGD, loop and ``with local_training``.

    Args:
        build: builds the model; its initial weights are not used.
        batches: the batches of a partition in a round; each is one step.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        step: one step on one batch.
        optimizer_of: builds another optimiser than SGD.
        examples: the number of examples of each partition; 8 by default.
        on_reply: called with partition, round, model and content before the reply is sent.
        mods: of the ClientApp.
    """
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = partition_of(context)
        server_round = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        model = build()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        optimizer = (
            optimizer_of(model)
            if optimizer_of
            else SGD(model.parameters(), learning_rate, momentum, weight_decay=weight_decay)
        )
        torch.manual_seed(dropout_seed(partition, server_round))
        with local_training(model, optimizer, message.content, context) as local:
            for batch in batches(partition, server_round):
                step(model, optimizer, batch)
        content = RecordDict(
            {
                "arrays": ArrayRecord(model.state_dict()),
                "metrics": MetricRecord({"num-examples": examples[partition] if examples else 8}),
                **local.records,
            }
        )
        on_reply(partition, server_round, model, content)
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 8, "partition": partition_of(context)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def dropout_seed(partition: int, server_round: int) -> int:
    return 1000 * server_round + partition
