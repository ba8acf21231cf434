"""Measure the bytes of messages and of state, by method and model.

python -m simulation.benchmarks.message_sizes --output simulation/results/communication/bytes.json

The real strategies and a real ClientApp run two rounds with one client in this process, one of
exploration and one of calibration. The sizes are those of Flower's protocol buffers in round 2,
when a method has all of its state. They depend on the model alone, so the client takes one step on
random images.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn
from torchvision.models import resnet18

from fixbn_flwr import FixBN, local_training
from fixbn_flwr.app.runs.environment import versions
from fixbn_flwr.flower_compat import Run, TaskIdentity, message_to_bytes, recorddict_to_proto
from fixbn_flwr.models.resnet20 import resnet20

CLIENT = 1
MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-20": resnet20,
    "ResNet-18": lambda: resnet18(num_classes=10),
}


def fedavg() -> FedAvg:
    """Return FedAvg for one client."""
    return FedAvg(
        fraction_evaluate=0.0, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1
    )


METHODS: dict[str, Callable[[], Strategy]] = {
    "FedAvg": fedavg,
    "FixBN, reset": lambda: FixBN(fedavg(), freeze_after=1, momentum="reset"),
    # While the guard watches, clients keep a second copy.
    "FixBN, local": lambda: FixBN(fedavg(), freeze_after=1, momentum="local", guard=False),
    "FixBN, global": lambda: FixBN(fedavg(), freeze_after=1, momentum="global"),
}


@dataclass(frozen=True)
class Cost:
    """Bytes of a method with a model, in round 2.

    Attributes:
        model: The model's name.
        method: The method's name.
        down: The size of the message to a client.
        up: The size of its reply.
        client_state: The size of a client's state between rounds.
        server_state: The size of the server's state besides the model.
    """

    model: str
    method: str
    down: int
    up: int
    client_state: int
    server_state: int


class WeighingGrid(Grid):
    """A Grid that calls a ClientApp for each message and records the sizes of message and reply.

    Args:
        client_app: The client.
    """

    def __init__(self, client_app: ClientApp) -> None:
        # Flower's processes get these when they start; messages need them.
        TaskIdentity.task_id = TaskIdentity.node_id = TaskIdentity.run_id = 1
        self.client_app = client_app
        self.context = Context(1, CLIENT, {}, RecordDict(), {})
        self.down = self.up = 0
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        """See ``Grid.set_run``."""
        self._run = run

    @property
    def run(self) -> Run:
        """See ``Grid.run``."""
        return self._run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not used by strategies, which create messages themselves."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not used by strategies, which call ``send_and_receive``."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not used by strategies, which call ``send_and_receive``."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Return the single client."""
        return [CLIENT]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Return the client's replies, and record the sizes of the last message and reply."""
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = "message"
            self.down = len(message_to_bytes(message))
            reply = self.client_app(message, self.context)
            self.up = len(message_to_bytes(reply))
            replies.append(reply)
        return replies


def client_of(build: Callable[[], nn.Module]) -> ClientApp:
    """Return a Message API client that takes one step on random images."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = build()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        with local_training(model, optimizer, message.content, context) as local:
            loss = model.train()(torch.randn(2, 3, 32, 32)).square().mean()
            torch.autograd.backward(loss)
            optimizer.step()
        content = RecordDict(
            {
                "arrays": ArrayRecord(model.state_dict()),
                "metrics": MetricRecord({"num-examples": 2}),
                **local.records,
            }
        )
        return Message(content, reply_to=message)

    return app


def measure(model: str, method: str) -> Cost:
    """Run two rounds of a method with a model, and return the sizes of the second."""
    build, strategy = MODELS[model], METHODS[method]()
    grid = WeighingGrid(client_of(build))
    strategy.start(grid, ArrayRecord(build().state_dict()), num_rounds=2)
    kept = grid.context.state
    server = 0
    if isinstance(strategy, FixBN):
        state = strategy._state  # there is no public access to it
        arrays = {**(state.frozen_statistics or {}), **state.global_momentum}
        server = sum(array.nbytes for array in arrays.values())
    return Cost(
        model=model,
        method=method,
        down=grid.down,
        up=grid.up,
        client_state=recorddict_to_proto(kept).ByteSize() if kept else 0,
        server_state=server,
    )


def table(costs: Iterable[Cost]) -> str:
    """Return costs as a Markdown table in megabytes (10^6 bytes)."""
    rows = ["| model | method | down | up | kept by a client | kept by the server |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for cost in costs:
        sizes = (cost.down, cost.up, cost.client_state, cost.server_state)
        cells = " | ".join(f"{size / 1e6:.3f}" if size else "0" for size in sizes)
        rows.append(f"| {cost.model} | {cost.method} | {cells} |")
    return "\n".join(rows)


def main(
    output: Annotated[
        Path | None, typer.Option(help="Also write the report to this JSON file.")
    ] = None,
) -> None:
    """Measure every method with every model; this takes a few seconds."""
    torch.manual_seed(0)
    costs = [measure(model, method) for model in MODELS for method in METHODS]
    print(table(costs))
    if output is not None:
        report = {
            "command": " ".join(sys.orig_argv),
            "versions": versions(),
            "costs": [asdict(cost) for cost in costs],
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=2) + "\n")
        print(f"Report: {output}")


if __name__ == "__main__":
    typer.run(main)
