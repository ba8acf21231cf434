"""FixBN for Flower: batch normalisation that works in federated learning (arXiv 2303.06530)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fixbn_flwr.client import FixBNClient
    from fixbn_flwr.local import local_training
    from fixbn_flwr.normalization import freeze_statistics
    from fixbn_flwr.schedule import Phase
    from fixbn_flwr.strategy import FixBN

__all__ = ["FixBN", "FixBNClient", "Phase", "freeze_statistics", "local_training"]

_MODULES = {
    "FixBN": "strategy",
    "FixBNClient": "client",
    "Phase": "schedule",
    "freeze_statistics": "normalization",
    "local_training": "local",
}


def __getattr__(name: str) -> object:
    # On first use: between machines Flower starts a process for every message, and the one that
    # only forwards it to the app's worker (app/forwarding.py) is spared importing torch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
