"""The app's client: a NumPyClient, as Flower documents it, with FixBN added by one ``with``.

It is an example as much as a product: all that FixBN needs of a client is the ``local_training``
block in ``FixBNClient.fit``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.common import Config, NDArrays, Scalar
from numpy.typing import NDArray
from torch import Tensor

from fixbn_flwr.app.client.node_config import Node
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.training import (
    Workbench,
    batches_by_epochs,
    batches_by_steps,
    evaluate,
    seed_of,
    train,
    workbench,
)
from fixbn_flwr.client.local_training import local_training
from fixbn_flwr.method.round_config import ROUND
from fixbn_flwr.tasks import Split, Task, load_splits
from fixbn_flwr.tasks.partition import partition


def workbench_of(task: Task, settings: Settings) -> Workbench:
    """Return this process's model and optimiser for a run config."""
    return workbench(
        task,
        settings.model,
        settings.norm,
        settings.momentum_coefficient,
        settings.weight_decay,
        settings.device,
    )


def partitions_of(settings: Settings, train: Split, clients: int) -> list[NDArray[np.int64]]:
    """Return the indices of each client's images among the training images."""
    return partition(
        train.labels,
        clients,
        settings.partition,
        alpha=settings.partition_alpha,
        classes_per_client=settings.partition_classes,
        seed=settings.seed,
        groups=None if train.groups is None else train.groups.numpy(),
    )


class FixBNClient(NumPyClient):
    """One client of the app: trains a task's model on the images that it holds.

    Args:
        task: data, model, loss and metric.
        partition: indices of this client's images among the task's training images, int64 ``[n]``.
        settings: the validated run config.
        context: Flower's context of this client; its state keeps the momentum buffers.
    """

    def __init__(
        self, task: Task, partition: NDArray[np.int64], settings: Settings, context: Context
    ) -> None:
        self.task = task
        self.partition = partition
        self.settings = settings
        self.context = context
        self.node = Node.of(context)

    def get_properties(self, config: Config) -> dict[str, Scalar]:
        """Tell the server which images this client trains on, how many, and what it is called."""
        properties: dict[str, Scalar] = {"examples": len(self.partition), "name": self.node.name}
        if self.node.partition is not None:
            properties["partition-id"] = self.node.partition
            properties["num-partitions"] = self.node.partitions
        return properties

    def fit(self, parameters: NDArrays, config: Config) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train for a round; return all arrays, the number of images, training loss and seconds."""
        settings, server_round = self.settings, int(config[ROUND])
        bench = self._bench(parameters)
        # What the process's last client left there; local_training brings this client's own.
        bench.optimizer.state.clear()
        bench.set_learning_rate(settings.learning_rate_at(server_round))
        # The same numbers whichever process trains this client, and in whatever order.
        seed = seed_of(settings.seed, server_round, self.node.number)
        torch.manual_seed(seed)  # dropout draws from the global generator
        random = torch.Generator().manual_seed(seed)
        with local_training(bench.model, bench.optimizer, config, self.context) as local:
            started = time.monotonic()
            loss = train(
                bench, self.task, self._data, self._batches(random), random, settings.precision
            )
            seconds = time.monotonic() - started
        metrics: dict[str, Scalar] = {
            "train-loss": loss,
            "train-seconds": seconds,
            **local.metrics,
        }
        return list(bench.arrays().values()), len(self.partition), metrics

    def evaluate(
        self, parameters: NDArrays, config: Config
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate the global model on this client's own images."""
        own = torch.from_numpy(self.partition)
        loss, accuracy = evaluate(self._bench(parameters), self.task, self._data, own)
        return loss, len(own), {"accuracy": accuracy}

    @property
    def _data(self) -> Split:
        return load_splits(self.task, self.settings.data_path)[0]

    def _bench(self, parameters: NDArrays) -> Workbench:
        bench = workbench_of(self.task, self.settings)
        bench.load(dict(zip(bench.model.state_dict(), parameters, strict=True)))
        return bench

    def _batches(self, random: torch.Generator) -> Iterator[Tensor]:
        indices, size = torch.from_numpy(self.partition), self.settings.batch_size
        if self.settings.local_steps:
            return batches_by_steps(indices, size, self.settings.local_steps, random)
        return batches_by_epochs(indices, size, self.settings.local_epochs, random)
