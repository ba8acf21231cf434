"""The package's client app without the worker; see `simulation.benchmarks.round_overhead`.

Flower starts a process for each message, which imports torch and builds the model anew.
"""

from __future__ import annotations

from fixbn_flwr.app.client_app import client_app_of, client_of
from fixbn_flwr.transport.packed_grid import flat_arrays_mod

app = client_app_of(client_of, [flat_arrays_mod])
