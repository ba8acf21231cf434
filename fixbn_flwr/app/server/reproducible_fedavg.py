"""FedAvg whose sample of clients depends on the seed and the round only."""

from __future__ import annotations

import random
from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.training import seed_of


class ReproducibleFedAvg(FedAvg):
    """FedAvg with a reproducible sample of clients; all clients validate the model.

    Args:
        settings: The run config.
        needed: The least number of clients in a round.
    """

    def __init__(self, settings: Settings, needed: int) -> None:
        super().__init__(
            fraction_train=settings.fraction_train,
            fraction_evaluate=1.0 if settings.validation_share else 0.0,
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

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model to all connected clients in the rounds in which they validate it.

        FedAvg would wait for a client that disconnects meanwhile.
        """
        if not self._settings.validates(server_round):
            return []
        config["server-round"] = server_round
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return [
            Message(content, dst_node_id=node_id, message_type=MessageType.EVALUATE)
            for node_id in grid.get_node_ids()
        ]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the averages over the clients' images, and each client's accuracy and node."""
        replies = list(replies)
        averages = super().aggregate_evaluate(server_round, replies)
        if averages is None:
            return None
        usable = [reply for reply in replies if reply.has_content()]
        records = [next(iter(reply.content.metric_records.values())) for reply in usable]
        accuracies = [float(str(record["accuracy"])) for record in records]
        nodes = [reply.metadata.src_node_id for reply in usable]
        return MetricRecord({**averages, "accuracies": accuracies, "nodes": nodes})
