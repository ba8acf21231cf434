"""What FixBN costs in communication and in state: bytes of real messages, by method and model.

python -m simulation.benchmarks.message_sizes --output simulation/results/communication/bytes.json

Two rounds of one client are run in this process, by the real strategies and a real ClientApp, and
every message is weighed as the protobuf that Flower sends: the first of them in exploration, the
second in calibration, when all that a method keeps has been kept. The sizes depend on the model
alone, so the client takes one step on noise.
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
from flwr.common.serde import message_to_proto, recorddict_to_proto
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from torch import nn
from torchvision.models import resnet18

from fixbn_flwr import FixBN, local_training
from fixbn_flwr.app.runs.environment import versions
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
    "FixBN, local": lambda: FixBN(fedavg(), freeze_after=1, momentum="local"),
    "FixBN, global": lambda: FixBN(fedavg(), freeze_after=1, momentum="global"),
}


@dataclass(frozen=True)
class Cost:
    """Bytes of one method with one model, in the second of two rounds.

    Attributes:
        model: the model's name.
        method: the method's name.
        down: of the message to a client.
        up: of its reply.
        client_state: of what a client keeps until its next round.
        server_state: of what the server keeps beside the model.
    """

    model: str
    method: str
    down: int
    up: int
    client_state: int
    server_state: int


class WeighingGrid(Grid):
    """Calls a ClientApp for each message and weighs both.

    Args:
        client_app: what the client runs.
    """

    def __init__(self, client_app: ClientApp) -> None:
        # What Flower's own processes are told when they start, and messages cannot do without.
        TaskIdentity.task_id = TaskIdentity.node_id = TaskIdentity.run_id = 1
        self.client_app = client_app
        self.context = Context(1, CLIENT, {}, RecordDict(), {})
        self.down = self.up = 0
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None:
        """Take another run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not used: strategies make their messages themselves."""
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Not used: strategies send and receive at once."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Not used: strategies send and receive at once."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Return the only client."""
        return [CLIENT]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Weigh each message, let the client answer, weigh its reply."""
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = "message"
            self.down = message_to_proto(message).ByteSize()
            reply = self.client_app(message, self.context)
            self.up = message_to_proto(reply).ByteSize()
            replies.append(reply)
        return replies


def client_of(build: Callable[[], nn.Module]) -> ClientApp:
    """Return a client that trains one step on noise, as any Message API client would."""
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
    """Run two rounds of a method with a model and weigh the second."""
    build, strategy = MODELS[model], METHODS[method]()
    grid = WeighingGrid(client_of(build))
    strategy.start(grid, ArrayRecord(build().state_dict()), num_rounds=2)
    kept = grid.context.state
    server = 0
    if isinstance(strategy, FixBN):
        state = strategy._state  # what is kept is nobody else's concern
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


def main(output: Annotated[Path | None, typer.Option(help="Write JSON, too.")] = None) -> None:
    """Weigh every method with every model; takes some seconds."""
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
