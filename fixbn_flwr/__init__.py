"""FixBN for Flower: batch normalisation that works in federated learning (arXiv 2303.06530)."""

from fixbn_flwr.client import FixBNClient
from fixbn_flwr.local import local_training
from fixbn_flwr.normalization import freeze_statistics
from fixbn_flwr.schedule import Phase
from fixbn_flwr.strategy import FixBN

__all__ = ["FixBN", "FixBNClient", "Phase", "freeze_statistics", "local_training"]
