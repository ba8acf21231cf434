"""Defending strategies inside FixBN: one hostile client among seven, in whole federations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    Strategy,
)
from torch import nn

from fixbn_flwr import FixBN
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import Batch, training_app
from tests.support.small_federation import federation, network, same, statistics_of

CLIENTS, HOSTILE = 7, 3  # Bulyan needs at least 4 * 1 + 3 clients against one
EVALUATE: dict[str, Any] = {"fraction_evaluate": 0.0}


class OwnMedian(FedMedian):
    """A user's subclass of a defending strategy."""


DEFENDERS: dict[str, Callable[[], Strategy]] = {
    "Krum": lambda: Krum(num_malicious_nodes=1, **EVALUATE),
    "MultiKrum": lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4, **EVALUATE),
    "Bulyan": lambda: Bulyan(num_malicious_nodes=1, **EVALUATE),
    "FedMedian": lambda: FedMedian(**EVALUATE),
    "FedTrimmedAvg": lambda: FedTrimmedAvg(beta=0.2, **EVALUATE),
    "a subclass": lambda: OwnMedian(**EVALUATE),
}
Arrays = dict[str, np.ndarray]


def identical_batches(partition: int, server_round: int) -> list[Batch]:
    """Return batches of one distribution for all clients, so only the attack deviates."""
    generator = torch.Generator().manual_seed(100 * server_round + partition)
    x = torch.randn(32, 6, generator=generator)
    return [(x, torch.randint(0, 3, (32,), generator=generator))] * 2


def attacked(
    strategy: Strategy, record: str, name: str, value: float, *, rounds: int = 3, **choices: Any
) -> tuple[dict[int, Arrays], dict[int, list[Arrays]], dict[int, Arrays]]:
    """Return the global arrays, the honest clients' records, and the records sent to clients."""
    honest: dict[int, list[Arrays]] = {}
    sent: dict[int, Arrays] = {}

    def on_reply(partition: int, server_round: int, _: nn.Module, content: RecordDict) -> None:
        arrays = content.array_records[record]
        if partition == HOSTILE:
            arrays[name] = Array(np.full_like(arrays[name].numpy(), value))
        else:
            honest.setdefault(server_round, []).append({n: a.numpy() for n, a in arrays.items()})

    trainer = training_app(network, identical_batches, on_reply=on_reply)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        server_round = message.content.config_records["config"]["server-round"]
        momentum = message.content.array_records.get(record, {})
        sent[int(server_round)] = {n: a.numpy() for n, a in momentum.items()}  # type: ignore[arg-type]
        return trainer(message, context)

    fixbn = FixBN(strategy, freeze_after=2, **choices)
    _, of_round = federation(
        fixbn, grid=SerializingGrid(app, CLIENTS, shuffle_seed=1), rounds=rounds
    )
    return of_round, honest, sent


def within_honest_range(value: np.ndarray, honest: list[np.ndarray]) -> bool:
    slack = 1e-6 + 1e-5 * np.abs(honest).max(axis=0)
    return bool(
        np.all(value >= np.min(honest, axis=0) - slack)
        and np.all(value <= np.max(honest, axis=0) + slack)
    )


ATTACKS = {
    "mean": ("norm.running_mean", 1e6),
    "negative mean": ("norm.running_mean", -1e6),
    "no variance": ("norm.running_var", 0.0),
    "variance": ("norm.running_var", 1e6),
    "weight": ("first.bias", 1e6),  # reference: how the strategy treats weights
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", DEFENDERS)
def test_a_hostile_client_cannot_move_arrays_beyond_the_honest_range(
    name: str, attack: str
) -> None:
    array, value = ATTACKS[attack]
    of_round, honest, _ = attacked(DEFENDERS[name](), "arrays", array, value)
    for server_round in (1, 2):
        for n in (*statistics_of(of_round[0]), "first.bias"):
            of_clients = [arrays[n] for arrays in honest[server_round]]
            assert within_honest_range(of_round[server_round][n], of_clients), (server_round, n)
    assert same(statistics_of(of_round[3]), statistics_of(of_round[2]))
    assert within_honest_range(of_round[3]["first.bias"], [a["first.bias"] for a in honest[3]])


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attacks_work_without_a_defence(attack: str) -> None:
    """The same client changes the result if the strategy does not defend."""
    array, value = ATTACKS[attack]
    of_round, honest, _ = attacked(FedAvg(**EVALUATE), "arrays", array, value, rounds=1)
    assert not within_honest_range(of_round[1][array], [arrays[array] for arrays in honest[1]])


@pytest.mark.parametrize("name", DEFENDERS)
@pytest.mark.parametrize(
    ("array", "expected"),
    [("norm.num_batches_tracked", 2), ("positions", list(range(7)))],
)
def test_integers_are_the_median(name: str, array: str, expected: Any) -> None:
    of_round, _, _ = attacked(DEFENDERS[name](), "arrays", array, 2**62, rounds=1)
    assert of_round[1][array].tolist() == expected
    assert of_round[1][array].dtype == np.int64


@pytest.mark.parametrize("name", DEFENDERS)
def test_global_momentum_is_defended_in_both_phases(name: str) -> None:
    buffers = ("fixbn-momentum", "first.weight", 1e6)
    of_round, honest, sent = attacked(DEFENDERS[name](), *buffers, rounds=4, momentum="global")
    for server_round in (1, 2, 3):
        for n, averaged in sent[server_round + 1].items():
            of_clients = [buffers_of_client[n] for buffers_of_client in honest[server_round]]
            assert within_honest_range(averaged, of_clients), (server_round, n)
            assert averaged.dtype == np.float32
    assert sent[4].keys() == honest[3][0].keys()
    assert same(statistics_of(of_round[4]), statistics_of(of_round[2]))


def test_the_attack_on_momentum_works_without_a_defence() -> None:
    buffers = ("fixbn-momentum", "first.weight", 1e6)
    _, honest, sent = attacked(FedAvg(**EVALUATE), *buffers, rounds=2, momentum="global")
    of_clients = [buffers_of_client["first.weight"] for buffers_of_client in honest[1]]
    assert not within_honest_range(sent[2]["first.weight"], of_clients)


@pytest.mark.parametrize("name", DEFENDERS)
def test_pooled_statistics_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="'pooled' does not work with"):
        FixBN(DEFENDERS[name](), freeze_after=1, statistics="pooled")


@pytest.mark.parametrize("name", DEFENDERS)
def test_a_wrapper_around_a_defender_is_refused(name: str) -> None:
    private = DifferentialPrivacyServerSideFixedClipping(DEFENDERS[name](), 0.1, 0.1, CLIENTS)
    with pytest.raises(ConfigError, match="must judge the statistics too"):
        FixBN(private, freeze_after=1)
