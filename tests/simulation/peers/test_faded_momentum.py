from __future__ import annotations

import pytest
import safetensors.torch
import torch
from flwr.app import ConfigRecord, Context, RecordDict

from fixbn_flwr.client.momentum_store import KEY
from fixbn_flwr.persistence.atomic_files import safetensors_metadata
from simulation.peers.faded_momentum import fade


def stored(server_round: int) -> Context:
    metadata = {"run": "1", "round": str(server_round), "model": "x"}
    content = safetensors.torch.save({"0": torch.tensor([8.0, -2.0])}, metadata=metadata)
    state = RecordDict({KEY: ConfigRecord({KEY: content, "other": b"kept"})})
    return Context(run_id=1, node_id=1, node_config={}, state=state, run_config={})


@pytest.mark.parametrize(
    ("server_round", "expected"), [(4, [8.0, -2.0]), (5, [4.0, -1.0]), (7, [1.0, -0.25])]
)
def test_momentum_is_halved_by_each_missed_round(server_round: int, expected: list[float]) -> None:
    context = stored(3)
    fade(context, server_round)
    record = context.state.config_records[KEY]
    content = record[KEY]
    assert isinstance(content, bytes)
    assert safetensors.torch.load(content)["0"].tolist() == expected
    assert safetensors_metadata(content) == {"run": "1", "round": "3", "model": "x"}
    assert record["other"] == b"kept"


def test_a_client_without_momentum_has_nothing_to_fade() -> None:
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    fade(context, 9)
    assert not context.state
