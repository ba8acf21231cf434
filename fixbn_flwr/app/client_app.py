"""The client's half of the Flower app: a NumPyClient for the partition that the node was given.

Between machines Flower imports this in a new process for every message, which only forwards it:
whatever imports torch is imported where a client is really made.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp

from fixbn_flwr.app.forwarding import worker_mod
from fixbn_flwr.bridge import numpy_client_mod
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.transport import flat_arrays_mod


def client_fn(context: Context) -> Client:
    """Make the client of a node; data, model and partition are built once a process.

    Raises:
        ConfigError: the run config cannot work here, or the node was given no partition.
    """
    from fixbn_flwr.app.config import Settings
    from fixbn_flwr.client import FixBNClient, partitions_of
    from fixbn_flwr.tasks import get_task, load_splits
    from fixbn_flwr.training import find_device

    settings = Settings.from_run_config(context.run_config)
    find_device(settings.device)
    try:
        own = int(context.node_config["partition-id"])
        partitions = int(context.node_config["num-partitions"])
    except KeyError as missing:
        raise ConfigError(
            f"this node has no {missing} in its node config: start the SuperNode with "
            '--node-config "partition-id=0 num-partitions=2", numbered from 0.'
        ) from missing
    if not 0 <= own < partitions:
        raise ConfigError(
            f"partition-id={own} is not one of 0 to {partitions - 1}: number the SuperNodes from 0 "
            "in --node-config, and give all the same num-partitions."
        )
    task = get_task(settings.task)
    train, _ = load_splits(task, settings.data_path)
    parts = partitions_of(settings, train, partitions)
    return FixBNClient(task, parts[own], settings, context).to_client()


app = ClientApp(client_fn=client_fn, mods=[worker_mod, flat_arrays_mod, numpy_client_mod])
