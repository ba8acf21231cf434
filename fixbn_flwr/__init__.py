"""FixBN for Flower: batch normalization that works in federated learning (arXiv 2303.06530)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fixbn_flwr.app.inference.loading import load
    from fixbn_flwr.client.local_training import local_training
    from fixbn_flwr.client.numpy_client_mod import numpy_client_mod
    from fixbn_flwr.client.parameters_only import parameters_only
    from fixbn_flwr.errors import FixBNError
    from fixbn_flwr.method.batch_norm import freeze_statistics
    from fixbn_flwr.method.schedule import Phase
    from fixbn_flwr.server.strategy import FixBN
    from fixbn_flwr.transport.packed_grid import flat_arrays_mod, flat_in_deployment

__all__ = [
    "FixBN",
    "FixBNError",
    "Phase",
    "flat_arrays_mod",
    "flat_in_deployment",
    "freeze_statistics",
    "load",
    "local_training",
    "numpy_client_mod",
    "parameters_only",
]

_MODULES = {
    "FixBN": "server.strategy",
    "FixBNError": "errors",
    "Phase": "method.schedule",
    "flat_arrays_mod": "transport.packed_grid",
    "flat_in_deployment": "transport.packed_grid",
    "freeze_statistics": "method.batch_norm",
    "load": "app.inference.loading",
    "local_training": "client.local_training",
    "numpy_client_mod": "client.numpy_client_mod",
    "parameters_only": "client.parameters_only",
}


def __getattr__(name: str) -> object:
    # Lazy, so that a process that only forwards messages does not import torch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
