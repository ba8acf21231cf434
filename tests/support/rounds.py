"""A client's context, and the config of a round as FixBN sends it."""

from __future__ import annotations

from typing import Any

from flwr.app import Context, RecordDict

from fixbn_flwr import Phase
from fixbn_flwr.method.round_config import Momentum, RoundConfig


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
