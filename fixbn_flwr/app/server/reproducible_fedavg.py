"""FedAvg whose sample of clients depends on the seed and the round only."""

from __future__ import annotations

import random
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.training import seed_of


class ReproducibleFedAvg(FedAvg):
    """FedAvg with a reproducible sample of clients, and without evaluation on clients.

    Args:
        settings: The run config.
        needed: The least number of clients in a round.
    """

    def __init__(self, settings: Settings, needed: int) -> None:
        super().__init__(
            fraction_train=settings.fraction_train,
            fraction_evaluate=0.0,
            min_train_nodes=needed,
            min_available_nodes=needed,
        )
        self._settings = settings
        self._needed = needed

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the round's share of the connected clients."""
        share = self._settings.clients_per_round(len(list(grid.get_node_ids())))
        self.min_train_nodes = max(self._needed, share)  # rounded; FedAvg rounds down
        # FedAvg draws from Python's global generator.
        random.seed(seed_of(self._settings.seed, server_round))
        return super().configure_train(server_round, arrays, config, grid)
