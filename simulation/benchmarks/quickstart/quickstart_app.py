"""Another baseline of the speed benchmark: an app in the style of Flower's PyTorch quickstart.

For each message the client builds the model, a DataLoader with per-image transforms and an
optimizer, trains, and returns the state dict. The server runs FedAvg. Model, images, augmentation,
batches and steps are those of our app, and each process reads the data set once.
"""

from __future__ import annotations

import json
import time
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import CIFAR10
from torchvision.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    ToTensor,
)

from fixbn_flwr.models.resnet20 import resnet20

client = ClientApp()
server = ServerApp()


@cache
def images(data_dir: str) -> CIFAR10:
    """Return the training images, which a process reads once."""
    transform = Compose(
        [
            RandomCrop(32, padding=4),
            RandomHorizontalFlip(),
            ToTensor(),
            Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ]
    )
    return CIFAR10(data_dir, train=True, transform=transform)


def load_data(context: Context) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """Return a loader of this client's images."""
    data = images(str(context.run_config["data-dir"]))
    own = int(context.node_config["partition-id"])
    clients = int(context.node_config["num-partitions"])
    share = Subset(data, range(own, len(data), clients))
    return DataLoader(share, batch_size=int(context.run_config["batch-size"]), shuffle=True)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the received model for `local-steps` steps."""
    model = resnet20()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    loader = load_data(context)
    criterion = nn.CrossEntropyLoss()
    learning_rate = float(context.run_config["learning-rate"])
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    model.train()
    running_loss = 0.0
    steps = int(context.run_config["local-steps"])
    for inputs, targets in islice(loader, steps):
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    metrics = MetricRecord(
        {"train_loss": running_loss / steps, "num-examples": steps * (loader.batch_size or 1)}
    )
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg, and append the seconds of each round to `rounds-file`."""
    clients = len(list(grid.get_node_ids()))
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    started = time.monotonic()

    def end_of_round(server_round: int, _arrays: ArrayRecord) -> None:
        nonlocal started
        seconds, started = time.monotonic() - started, time.monotonic()
        if server_round > 0:
            with Path(str(context.run_config["rounds-file"])).open("a") as file:
                file.write(json.dumps({"round": server_round, "seconds": seconds}) + "\n")

    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(resnet20().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=end_of_round,
    )
