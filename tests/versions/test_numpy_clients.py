"""NumPyClients trained through T*, without Ray and without anything newer than Flower 1.17."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.client import NumPyClient
from flwr.common import Context, Parameters, RecordDict, ndarrays_to_parameters
from flwr.server import Server, SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from torch import nn

from fixbn_flwr import local_training
from fixbn_flwr.legacy import FixBN

CLIENTS, ROUNDS, FREEZE_AFTER = 3, 4, 2


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


NAMES = list(network().state_dict())
STATISTICS = [place for place, name in enumerate(NAMES) if "running" in name]


def arrays_of(model: nn.Module) -> list[np.ndarray]:
    return [tensor.numpy().copy() for tensor in model.state_dict().values()]


class Client(NumPyClient):
    def __init__(self, number: int) -> None:
        self.number = number
        self.own_context = Context(1, number, {}, state=RecordDict(), run_config={})
        self.phases: list[Any] = []

    def fit(self, parameters: Any, config: Any) -> Any:
        model = network()
        tensors = (torch.from_numpy(array) for array in parameters)
        model.load_state_dict(dict(zip(NAMES, tensors, strict=True)))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        random = torch.Generator().manual_seed(self.number)
        with local_training(model, optimizer, config, self.own_context) as local:
            model.train()
            for _ in range(3):
                images = torch.randn(8, 6, generator=random) * (1 + self.number) + self.number
                loss = nn.functional.cross_entropy(model(images), torch.arange(8) % 3)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.phases.append(str(local.phase))
        return arrays_of(model), 8, {**local.metrics}


class InProcess(ClientProxy):
    """Calls a client in this process."""

    def __init__(self, client: Client) -> None:
        super().__init__(str(client.number))
        self.client = client.to_client()

    def fit(self, ins: Any, timeout: Any, group_id: Any) -> Any:
        return self.client.fit(ins)

    def get_parameters(self, *_: Any) -> Any:
        raise AssertionError("the strategy has the initial parameters")

    get_properties = evaluate = reconnect = get_parameters


def train(momentum: Any) -> tuple[list[list[np.ndarray]], list[Client]]:
    """Return the global arrays of each round, the initial ones first, and the clients."""
    of_round: list[list[np.ndarray]] = []

    def evaluate(_: int, parameters: Any, __: Any) -> Any:
        of_round.append(parameters)
        return 0.0, {}

    initial: Parameters = ndarrays_to_parameters(arrays_of(network()))
    strategy = FedAvg(
        initial_parameters=initial, fraction_evaluate=0.0, min_available_clients=CLIENTS,
        evaluate_fn=evaluate,
    )  # fmt: skip
    clients, manager = [Client(number) for number in range(CLIENTS)], SimpleClientManager()
    for client in clients:
        manager.register(InProcess(client))
    fixbn = FixBN(
        strategy, freeze_after=FREEZE_AFTER, momentum=momentum, parameter_names=NAMES,
        num_rounds=ROUNDS,
    )  # fmt: skip
    Server(client_manager=manager, strategy=fixbn).fit(num_rounds=ROUNDS, timeout=None)
    return of_round, clients


@pytest.mark.parametrize("momentum", ["local", "reset", "global"])
def test_statistics_freeze_at_t_star_and_everything_else_goes_on_learning(momentum: str) -> None:
    of_round, clients = train(momentum)
    assert len(of_round) == ROUNDS + 1
    for place, name in enumerate(NAMES):
        values = [arrays[place] for arrays in of_round]
        same = [
            values[number].tobytes() == values[number + 1].tobytes() for number in range(ROUNDS)
        ]
        if place in STATISTICS:
            assert same == [False, False, True, True], name
        elif "num_batches" not in name:
            assert same == [False] * ROUNDS, name
    for client in clients:
        assert client.phases == ["exploration", "exploration", "calibration", "calibration"]
        assert bool(client.own_context.state) is (momentum == "local")
