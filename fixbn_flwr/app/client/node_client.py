"""The client of a node: which images it has, and on which of its devices it trains.

Apart from ``client_app``, which Flower imports in every process: what is here imports torch.
"""

from __future__ import annotations

import numpy as np
from flwr.app import Context
from flwr.client import Client
from numpy.typing import NDArray

from fixbn_flwr.app.client.node_config import Node, settings_of
from fixbn_flwr.app.client.numpy_client import FixBNClient, partitions_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.training import find_device
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import Split, get_task, load_splits


def make_client(context: Context) -> Client:
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
    return partitions_of(settings, train, node.partitions)[node.partition]
