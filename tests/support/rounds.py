"""A client's context, its kept momentum, and the config of a round as FixBN sends it."""

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


def asked(
    server_round: int = 1,
    *,
    phase: Phase = Phase.EXPLORATION,
    momentum: str = "local",
    factor: float = 1.0,
) -> dict[str, Any]:
    """What FixBN puts into a message's config."""
    return dict(RoundConfig(server_round, phase, Momentum(momentum), factor).as_config())


def kept_buffers(grid: SerializingGrid) -> list[Buffers]:
    """What each client has kept in its state so far, in the order of partitions."""
    kept = [context.state.config_records.get(KEY) for context in grid.contexts.values()]
    return [
        {} if record is None else safetensors.torch.load(cast(bytes, record[KEY]))
        for record in kept
    ]
