"""The package's client app without the worker; see `simulation.benchmarks.round_overhead`.

Flower starts a process for each message, which imports torch and builds the model anew.
"""

from __future__ import annotations

from flwr.clientapp import ClientApp

from fixbn_flwr.app.client_app import client_fn
from fixbn_flwr.client.numpy_client_mod import numpy_client_mod
from fixbn_flwr.transport.packed_grid import flat_arrays_mod

app = ClientApp(client_fn=client_fn, mods=[flat_arrays_mod, numpy_client_mod])
