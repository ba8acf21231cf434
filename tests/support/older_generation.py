"""Projects of Flower's older generation: NumPyClients and runs of ``flwr.server`` strategies.

    history, of_round = run_older(strategy, numpy_app(network, batches), arrays, num_rounds=3)

The server is a real ``ServerApp(server_fn=...)`` on fixbn_flwr.testing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Context, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import Strategy
from torch import nn
from torch.optim import SGD

from fixbn_flwr import local_training
from fixbn_flwr.flower_compat import Mod
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import Batch, TrainStep, dropout_seed, partition_of, sgd_step

Arrays = list[np.ndarray]


def arrays_of(model: nn.Module) -> Arrays:
    return [tensor.numpy().copy() for tensor in model.state_dict().values()]


def load(model: nn.Module, arrays: Arrays) -> None:
    tensors = (torch.from_numpy(array) for array in arrays)
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))


class Trainer(NumPyClient):
    """An ordinary NumPyClient that uses ``local_training``; see numpy_app."""

    def __init__(self, context: Context, choices: Mapping[str, Any]) -> None:
        self.context, self.choices = context, choices
        self.partition = partition_of(context)
        self.model: nn.Module = choices["build"]()

    def get_parameters(self, config: Any) -> Any:
        return arrays_of(self.model)

    def fit(self, parameters: Any, config: Any) -> Any:
        choices, server_round = self.choices, int(config.get("server-round", 1))
        load(self.model, parameters)
        optimizer = SGD(
            self.model.parameters(),
            choices["learning_rate"],
            choices["momentum"],
            weight_decay=choices["weight_decay"],
        )
        torch.manual_seed(dropout_seed(self.partition, server_round))
        with local_training(self.model, optimizer, config, self.context) as local:
            for batch in choices["batches"](self.partition, server_round):
                choices["step"](self.model, optimizer, batch)
        arrays = arrays_of(self.model)
        metrics = {**choices["metrics"], **local.metrics}
        choices["on_reply"](self.partition, server_round, arrays, metrics)
        examples = choices["examples"]
        return arrays, examples[self.partition] if examples else 8, metrics

    def evaluate(self, parameters: Any, config: Any) -> Any:
        load(self.model, parameters)
        return float(self.partition), 8, {"accuracy": 0.25, "note": "unseen"}


def numpy_app(
    build: Callable[[], nn.Module],
    batches: Callable[[int, int], Sequence[Batch]],
    *,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    step: TrainStep = sgd_step,
    examples: Sequence[int] | None = None,
    metrics: Mapping[str, Any] | None = None,
    on_reply: Callable[[int, int, Arrays, dict[str, Any]], None] = lambda *_: None,
    client: type[Trainer] = Trainer,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """Return a ClientApp with client_fn; the arguments are those of clients.training_app.

    Args:
        build: builds the model; its initial weights are used only if the server requests them.
        batches: the batches of a partition in a round; each is one step.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        step: one step on one batch.
        examples: the number of examples of each partition; 8 by default.
        metrics: metrics that fit() returns.
        on_reply: called with partition, round, arrays and metrics; it may change the last two.
        client: a subclass of Trainer to use instead of it.
        mods: of the ClientApp.
    """
    choices = {
        "build": build,
        "batches": batches,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "step": step,
        "examples": examples,
        "metrics": metrics or {},
        "on_reply": on_reply,
    }
    return ClientApp(
        client_fn=lambda context: client(context, choices).to_client(), mods=list(mods)
    )


class Watched:
    """Records a strategy's global arrays at the end of each round (0: the initial ones)."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.of_round: dict[int, Arrays] = {}
        original = strategy.evaluate

        def evaluate(server_round: int, parameters: Parameters) -> Any:
            self.of_round[server_round] = parameters_to_ndarrays(parameters)
            return original(server_round, parameters)

        vars(strategy)["evaluate"] = evaluate


def run_older(
    strategy: Strategy,
    client_app: ClientApp,
    num_rounds: int,
    *,
    clients: int = 4,
    grid: SerializingGrid | None = None,
    **grid_options: Any,
) -> dict[int, Arrays]:
    """Run a federation; return the global arrays at the end of each round (0: the initial)."""
    grid = grid or SerializingGrid(client_app, clients, **grid_options)
    watched = Watched(strategy)

    def server_fn(_: Context) -> ServerAppComponents:
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=num_rounds))

    server_app = ServerApp(server_fn=server_fn)
    server_app(grid, Context(1, 1, {}, RecordDict(), {}))
    return watched.of_round
