"""The client's half of the Flower app: a NumPyClient for the images that the node was given.

Between machines Flower imports this in a new process for every message, which only forwards it:
whatever imports torch is imported where a client is really made.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp

from fixbn_flwr.app.worker.forwarder import worker_mod
from fixbn_flwr.client.numpy_client_mod import numpy_client_mod
from fixbn_flwr.transport.packed_grid import flat_arrays_mod


def client_fn(context: Context) -> Client:
    """Make the client of a node, see ``node_client``."""
    from fixbn_flwr.app.client.node_client import make_client

    return make_client(context)


app = ClientApp(client_fn=client_fn, mods=[worker_mod, flat_arrays_mod, numpy_client_mod])
