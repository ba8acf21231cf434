"""The app's client, which trains a task's model on its images.

It is also an example: the ``local_training`` block in ``FixBNClient.train`` is all that FixBN needs
in a client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fixbn_flwr.app.batches import batches_by_epochs, batches_by_steps
from fixbn_flwr.app.class_weights import weighted_task
from fixbn_flwr.app.client.node_config import Node, settings_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.cuda_graphs import replays
from fixbn_flwr.app.local_step import batch_loss
from fixbn_flwr.app.training import evaluate, on_device, seed_of, train
from fixbn_flwr.app.workbench import Workbench, find_device, workbench
from fixbn_flwr.array_records import arrays_of, record_of
from fixbn_flwr.client.local_training import local_training
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.round_config import ROUND
from fixbn_flwr.tasks import Split, Task, check_not_empty, load_splits
from fixbn_flwr.tasks.hold_out import hold_out
from fixbn_flwr.tasks.partition import partition
from fixbn_flwr.tasks.signature import Signature


def make_client(context: Context) -> FixBNClient:
    """Return the client of a node. A process loads data, model and partition once.

    Raises:
        ConfigError: If the run config, the node config or the data cannot be used. The message
            starts with the node's name if it has one.
    """
    try:
        node, settings = Node.of(context), settings_of(context)
        find_device(settings.device)
        # Nobody would use test images that are chosen among a node's own.
        task = settings.read_task(choose_test=node.partition is not None)
        train, _ = load_splits(task, settings.data_path)
        check_not_empty(task, train, "training")
        images: NDArray[np.int64] = np.arange(len(train))
        if node.partition is not None:
            images = partitions_of(settings, train, node.partitions)[node.partition]
    except ConfigError as error:
        name = context.node_config.get("name")
        raise ConfigError(f"{name}: {error}" if name else str(error)) from error
    return FixBNClient(task, images, settings, context)


def workbench_of(task: Task, settings: Settings) -> Workbench:
    """Return this process's model and optimizer for a run config."""
    return workbench(
        task,
        settings.model,
        settings.norm,
        settings.momentum_coefficient,
        settings.weight_decay,
        settings.device,
        settings.cuda_graphs,
    )


def partitions_of(settings: Settings, train: Split, clients: int) -> list[NDArray[np.int64]]:
    """Return the indices of each client's images in the training split, int64 ``[n]`` each."""
    return partition(
        train.labels,
        clients,
        settings.partition,
        alpha=settings.partition_alpha,
        classes_per_client=settings.partition_classes,
        seed=settings.seed,
        groups=None if train.groups is None else train.groups.numpy(),
    )


def held_out_of(
    settings: Settings, images: NDArray[np.int64], partition: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the images that a client trains on, and those that it validates the model on.

    Args:
        settings: The run config.
        images: The indices of all its images, int64 ``[n]``.
        partition: The number of its partition; None if it has its own data. Its node id would not
            do, which can change during a run.
    """
    return hold_out(images, settings.validation_share, seed=settings.seed, client=partition or 0)


class FixBNClient:
    """A client that trains a task's model on its own images.

    Args:
        task: The data, model, loss and metric.
        partition: The indices of this client's images in the training split, int64 ``[n]``.
        settings: The validated run config.
        context: Flower's context of this client; its state keeps the momentum buffers.

    Attributes:
        training: The indices of the images that it trains on.
        validation: The indices of those that it holds out.
    """

    def __init__(
        self, task: Task, partition: NDArray[np.int64], settings: Settings, context: Context
    ) -> None:
        self.task = task
        self.partition = partition
        self.settings = settings
        self.context = context
        self.node = Node.of(context)
        self.training, self.validation = held_out_of(settings, partition, self.node.partition)

    def properties(self) -> RecordDict:
        """Return what the server needs to know of this client and its images."""
        properties = ConfigRecord({"name": self.node.name})
        properties["examples"] = len(self.training)
        signature = Signature.of(self.task, self._data.images)
        properties["input-size"] = list(signature.input_size)
        if self.node.partition is not None:
            properties["partition-id"] = self.node.partition
            properties["num-partitions"] = self.node.partitions
        else:  # the server checks that all clients have the same classes
            properties["class-names"] = list(signature.class_names)
        return RecordDict({"properties": properties})

    def train(self, received: RecordDict) -> RecordDict:
        """Train for a round.

        Args:
            received: The content of the server's message: "arrays" and "config".

        Returns:
            The content of the reply: all arrays, the number of images, the loss and the seconds.
        """
        settings = self.settings
        server_round = int(str(received.config_records["config"][ROUND]))
        bench = self._bench(received)
        # The buffers are those of the process's last client; local_training loads this client's.
        bench.optimizer.state.clear()
        bench.set_learning_rate(settings.learning_rate_at(server_round))
        # The result does not depend on the process, or on the order of the clients.
        seed = seed_of(settings.seed, server_round, self.node.number)
        torch.manual_seed(seed)  # dropout draws from the global generator
        random = torch.Generator().manual_seed(seed)
        with local_training(bench.model, bench.optimizer, received, self.context) as local:
            local.compare_gradients(self._first_loss(bench, seed))
            stage = (local.phase, local.learning_rate_factor)
            started = time.monotonic()
            loss = train(
                bench, self._trained(bench), self._data, self._batches(random), random,
                settings.precision,
                around=replays(bench, stage),
            )  # fmt: skip
            seconds = time.monotonic() - started
        metrics = MetricRecord()
        metrics["num-examples"] = len(self.training)
        metrics["train-loss"], metrics["train-seconds"] = loss, seconds
        arrays = record_of(bench.arrays())
        return RecordDict({"arrays": arrays, "metrics": metrics, **local.records})

    def evaluate(self, received: RecordDict) -> RecordDict:
        """Validate the global model on the images that this client holds out.

        Args:
            received: The content of the server's message: "arrays" and "config".

        Returns:
            The content of the reply: the number of images, the loss and the accuracy. The server
            leaves out a client that holds out none.
        """
        metrics = MetricRecord({"num-examples": len(self.validation)})
        if len(self.validation):
            own = torch.from_numpy(self.validation)
            loss, accuracy = evaluate(self._bench(received), self.task, self._data, own)
            metrics["loss"], metrics["accuracy"] = loss, accuracy
        return RecordDict({"metrics": metrics})

    def _first_loss(self, bench: Workbench, seed: int) -> Callable[[], Tensor]:
        """Return what computes the loss of the round's first batch, in float32."""

        def loss() -> Tensor:
            random = torch.Generator().manual_seed(seed)
            batch = next(self._batches(random))
            data = on_device(self._data, bench.device)
            return batch_loss(bench, self._trained(bench), data, batch, bench.random_of(random))

        return loss

    def _trained(self, bench: Workbench) -> Task:
        """Return the task with the loss that is trained."""
        return weighted_task(self.task, self._data, self.settings.class_weights, bench.device)

    @property
    def _data(self) -> Split:
        return load_splits(self.task, self.settings.data_path)[0]

    def _bench(self, received: RecordDict) -> Workbench:
        bench = workbench_of(self.task, self.settings)
        bench.load(arrays_of(received.array_records["arrays"]))
        return bench

    def _batches(self, random: torch.Generator) -> Iterator[Tensor]:
        indices, size = torch.from_numpy(self.training), self.settings.batch_size
        if self.settings.local_steps:
            return batches_by_steps(indices, size, self.settings.local_steps, random)
        return batches_by_epochs(indices, size, self.settings.local_epochs, random)
