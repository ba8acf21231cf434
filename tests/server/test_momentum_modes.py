"""FixBN around real strategies: momentum and the learning rate."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from fixbn_flwr import FixBN
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, training_app
from tests.support.small_federation import (
    CLIENTS,
    ROUNDS,
    batches,
    fedavg,
    federation,
    network,
    same,
)


def momentum_by_round(mode: str, fraction: float = 1.0) -> dict[int, dict[int, list[Tensor]]]:
    """Return the buffer of `first.bias` before and after training, by round and client."""
    log: dict[int, dict[int, list[Tensor]]] = {}

    class Recording(torch.optim.SGD):
        first_buffer: Tensor | None = None

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            if self.first_buffer is None:
                bias = self.param_groups[0]["params"][2]  # scale, first.weight, first.bias
                self.first_buffer = self.state[bias].get("momentum_buffer", torch.zeros(5)).clone()
            return super().step(closure)

    optimisers: dict[int, Recording] = {}

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        return optimisers.setdefault(id(model), Recording(model.parameters(), 0.05, momentum=0.9))

    def on_reply(partition: int, server_round: int, model: nn.Module, _: RecordDict) -> None:
        optimizer = optimisers[id(model)]
        bias = optimizer.param_groups[0]["params"][2]
        assert optimizer.first_buffer is not None
        end = optimizer.state[bias]["momentum_buffer"].clone()
        log.setdefault(server_round, {})[partition] = [optimizer.first_buffer, end]
        optimizer.first_buffer = None

    random.seed(0)  # determines FedAvg's sample of clients
    one_model = network()  # one model and one optimiser for all clients, as in a Ray actor
    app = training_app(
        lambda: one_model, batches, optimizer_of=optimizer_of, on_reply=on_reply,
        examples=[1, 2, 3, 4],
    )  # fmt: skip
    inner = fedavg(fraction_train=fraction, min_train_nodes=1)
    federation(FixBN(inner, freeze_after=2, momentum=mode), grid=SerializingGrid(app, CLIENTS))
    return log


def test_reset_starts_from_zero() -> None:
    for clients in momentum_by_round("reset").values():
        assert all(not start.any() and end.any() for start, end in clients.values())


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_local_continues_with_the_clients_own_momentum(fraction: float) -> None:
    log = momentum_by_round("local", fraction)
    saved: dict[int, Tensor] = {}
    for server_round in range(1, ROUNDS + 1):
        assert len(log[server_round]) == CLIENTS * fraction
        for client, (start, end) in log[server_round].items():
            assert torch.equal(start, saved.get(client, torch.zeros(5)))
            saved[client] = end
    assert len(saved) > CLIENTS * fraction or fraction == 1.0  # others took part in later rounds


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_global_starts_from_the_average_of_the_replies(fraction: float) -> None:
    log = momentum_by_round("global", fraction)
    assert all(not start.any() for start, _ in log[1].values())
    for server_round in range(2, ROUNDS + 1):
        last = log[server_round - 1]
        total = sum(client + 1 for client in last)
        average = sum(end * (client + 1) / total for client, (_, end) in last.items())
        for start, _ in log[server_round].values():
            torch.testing.assert_close(start, average, rtol=1e-6, atol=1e-7)


def test_an_earlier_run_leaves_no_momentum() -> None:
    strategy = FixBN(fedavg(), freeze_after=1, momentum="global")
    first, _ = federation(strategy)
    second, _ = federation(strategy)
    assert same(
        {n: a.numpy() for n, a in first.arrays.items()},
        {n: a.numpy() for n, a in second.arrays.items()},
    )


def test_learning_rate_factor_is_applied_in_calibration_and_restored() -> None:
    """The length of a step of SGD without momentum is proportional to the rate."""

    def first_step(factor: float) -> tuple[float, list[float]]:
        rates: list[float] = []
        optimisers: list[torch.optim.SGD] = []

        def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
            optimisers.append(torch.optim.SGD(model.parameters(), 0.05))
            return optimisers[-1]

        app = training_app(
            network,
            lambda partition, server_round: batches(partition, server_round)[:1],
            optimizer_of=optimizer_of,
            on_reply=lambda *_: rates.append(optimisers[-1].param_groups[0]["lr"]),
        )
        strategy = FixBN(fedavg(), freeze_after=1, learning_rate_factor=factor)
        _, of_round = federation(strategy, grid=SerializingGrid(app, CLIENTS), rounds=2)
        step = of_round[2]["last.weight"] - of_round[1]["last.weight"]
        return float(np.linalg.norm(step)), rates

    full, _ = first_step(1.0)
    tenth, rates = first_step(0.1)
    assert tenth == pytest.approx(full / 10, rel=1e-4)
    assert rates == [0.05] * CLIENTS * 2


def whole() -> nn.Module:
    return torch.compile(network(), backend="eager")  # type: ignore[return-value]


def part() -> nn.Module:
    model = network()
    model.first = torch.compile(model.first, backend="eager")
    return model


@pytest.mark.parametrize("clients", [network, whole, part])
@pytest.mark.parametrize("server", [network, whole, part])
def test_compiled_models_exchange_their_momentum(server: Any, clients: Any) -> None:
    expected, _ = federation(FixBN(fedavg(), freeze_after=2, momentum="global"), rounds=2)

    def build() -> nn.Module:
        """Return a client's model that takes the server's names, as users' code must."""
        model: nn.Module = clients()
        names, load = list(model.state_dict()), model.load_state_dict
        model.load_state_dict = lambda state: load(dict(zip(names, state.values(), strict=True)))  # type: ignore[assignment]
        return model

    grid = SerializingGrid(training_app(build, batches), CLIENTS)
    strategy = FixBN(fedavg(), freeze_after=2, momentum="global")
    result, _ = federation(strategy, grid=grid, arrays=initial_arrays(server()), rounds=2)
    assert result.train_metrics_clientapp[2]["fixbn-clients"] == CLIENTS
    assert list(result.arrays) == list(server().state_dict())
    for one, other in zip(result.arrays.values(), expected.arrays.values(), strict=True):
        assert np.array_equal(one.numpy(), other.numpy())
