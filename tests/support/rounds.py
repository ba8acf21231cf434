"""A client's context, its saved momentum buffers, and the config that FixBN sends in a round."""

from __future__ import annotations

from typing import Any, cast

import safetensors.torch
from flwr.app import Context, RecordDict

from fixbn_flwr import Phase
from fixbn_flwr.client.momentum_store import KEY
from fixbn_flwr.method.optimizer_buffers import Buffers
from fixbn_flwr.method.round_config import Momentum, RoundConfig
from fixbn_flwr.testing import SerializingGrid


def client(partition: int = 0, run_id: int = 1) -> Context:
    node_config: dict[str, Any] = {"partition-id": partition}
    return Context(run_id, partition, node_config, state=RecordDict(), run_config={})


def round_config(
    server_round: int = 1,
    *,
    phase: Phase = Phase.EXPLORATION,
    momentum: str = "local",
    factor: float = 1.0,
) -> dict[str, Any]:
    """Return the entries that FixBN adds to a message's config."""
    return dict(RoundConfig(server_round, phase, Momentum(momentum), factor).as_config())


def saved_buffers(grid: SerializingGrid) -> list[Buffers]:
    """Return the momentum buffers in each client's state, in the order of partitions."""
    saved = [context.state.config_records.get(KEY) for context in grid.contexts.values()]
    return [
        {} if record is None else safetensors.torch.load(cast(bytes, record[KEY]))
        for record in saved
    ]
