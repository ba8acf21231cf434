"""The app's ClientApp: a NumPyClient that trains on its node's images.

In a deployment, Flower imports this module in a new process for each message, which only forwards
the message. So imports that need torch are inside ``client_fn``.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.client import Client
from flwr.clientapp import ClientApp

from fixbn_flwr.app.worker.forwarder import worker_mod
from fixbn_flwr.client.numpy_client_mod import numpy_client_mod
from fixbn_flwr.transport.packed_grid import flat_arrays_mod


def client_fn(context: Context) -> Client:
    """Return the client of a node."""
    from fixbn_flwr.app.client.numpy_client import make_client

    return make_client(context)


app = ClientApp(client_fn=client_fn, mods=[worker_mod, flat_arrays_mod, numpy_client_mod])
