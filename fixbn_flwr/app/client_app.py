"""The client's half of the Flower app: a NumPyClient for the images that the node was given."""

from __future__ import annotations

import numpy as np
from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fixbn_flwr.app.config import Settings
from fixbn_flwr.app.node import Node, settings_of
from fixbn_flwr.bridge import numpy_client_mod
from fixbn_flwr.client import FixBNClient
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import Split, get_task, load_splits
from fixbn_flwr.tasks.partition import partition
from fixbn_flwr.training import find_device


def client_fn(context: Context) -> Client:
    """Make the client of a node; data, model and partition are built once a process.

    Raises:
        ConfigError: the run config cannot work here, or the node's own config or data; begins with
            the node's name if it has one.
    """
    try:
        node, settings = Node.of(context), settings_of(context)
        find_device(settings.device)
        task = get_task(settings.task)
        train, _ = load_splits(task, settings.data_path)
        images = _images_of(node, train, settings)
    except ConfigError as error:
        name = context.node_config.get("name")
        raise ConfigError(f"{name}: {error}" if name else str(error)) from error
    return FixBNClient(task, images, settings, context).to_client()


def _images_of(node: Node, train: Split, settings: Settings) -> NDArray[np.int64]:
    """Return the indices of a node's images: all of its own data, or its part of everybody's."""
    if node.partition is None:
        return np.arange(len(train))
    parts = partition(
        train.labels,
        node.partitions,
        settings.partition,
        alpha=settings.partition_alpha,
        classes_per_client=settings.partition_classes,
        seed=settings.seed,
        groups=None if train.groups is None else train.groups.numpy(),
    )
    return parts[node.partition]


app = ClientApp(client_fn=client_fn, mods=[numpy_client_mod])
