"""NumPyClients of Flower's older generation under strategies of both generations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.server.workflow import DefaultWorkflow
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from torch import Tensor, nn
from torch.optim import SGD

from fixbn_flwr import FixBN, local_training, numpy_client_mod
from fixbn_flwr.errors import RoundsFailedError
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import dropout_seed, initial_arrays, partition_of, sgd_step, training_app

CLIENTS = 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


def batches(partition: int, server_round: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(100 * server_round + partition)
    x = torch.randn(4, 4, generator=generator) + partition
    return [(x, torch.randint(0, 2, (4,), generator=generator))] * 2


class Trainer(NumPyClient):
    """An ordinary NumPyClient that uses ``local_training``."""

    def __init__(self, context: Context, extra: dict[str, Any] | None = None) -> None:
        self.context = context
        self.extra = extra or {}
        self.model = network()

    def load(self, parameters: list[np.ndarray]) -> None:
        names = self.model.state_dict()
        arrays = (torch.from_numpy(array) for array in parameters)
        self.model.load_state_dict(dict(zip(names, arrays, strict=True)))

    def fit(self, parameters: Any, config: Any) -> Any:
        partition, server_round = partition_of(self.context), int(config.get("server-round", 1))
        self.load(parameters)
        optimizer = SGD(self.model.parameters(), 0.05, 0.9)
        torch.manual_seed(dropout_seed(partition, server_round))
        with local_training(self.model, optimizer, config, self.context) as local:
            for batch in batches(partition, server_round):
                sgd_step(self.model, optimizer, batch)
        arrays = [tensor.numpy() for tensor in self.model.state_dict().values()]
        return arrays, 8, {**self.extra, **local.metrics}

    def evaluate(self, parameters: Any, config: Any) -> Any:
        self.load(parameters)
        return float(partition_of(self.context)), 8, {"accuracy": 0.25, "note": "unseen"}


def app(extra: dict[str, Any] | None = None, *, bridged: bool = True) -> ClientApp:
    def client_fn(context: Context) -> Client:
        return Trainer(context, extra).to_client()

    return ClientApp(client_fn=client_fn, mods=[numpy_client_mod] if bridged else [])


def run(
    strategy: Strategy, client_app: ClientApp, rounds: int = 3
) -> tuple[Result, dict[str, np.ndarray]]:
    grid = SerializingGrid(client_app, CLIENTS, shuffle_seed=1)
    result = strategy.start(grid, initial_arrays(network()), rounds)
    return result, {name: array.numpy() for name, array in result.arrays.items()}


@pytest.mark.parametrize("momentum", ["reset", "local", "global"])
@pytest.mark.parametrize("freeze_after", [1, 1.0])
def test_a_numpy_client_trains_like_a_client_of_the_message_api(
    momentum: str, freeze_after: int | float
) -> None:
    """Bits, names, shapes and types are the same as those of a Message API client."""
    results = [
        run(FixBN(FedAvg(), freeze_after=freeze_after, momentum=momentum), client_app)
        for client_app in (app(), training_app(network, batches, examples=[8] * CLIENTS))
    ]
    (bridged, arrays), (_, expected) = results
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype
        assert np.array_equal(array, expected[name]), name
    assert bridged.train_metrics_clientapp[3]["fixbn-clients"] == CLIENTS
    assert not np.array_equal(arrays["0.weight"], network()[0].weight.detach().numpy())


def test_a_numpy_client_trains_under_plain_fedavg() -> None:
    result, arrays = run(FedAvg(), app({"train-loss": 0.5}))
    assert list(arrays) == list(network().state_dict())
    assert arrays["1.running_mean"].any()
    assert result.train_metrics_clientapp[3] == {"train-loss": 0.5}
    assert result.evaluate_metrics_clientapp[3] == {"loss": pytest.approx(1), "accuracy": 0.25}


def test_metrics_that_are_not_numbers_are_sent_as_config() -> None:
    replies: list[RecordDict] = []

    def watch(message: Message, context: Context, call_next: Any) -> Message:
        reply = call_next(message, context)
        replies.append(reply.content)
        return reply  # type: ignore[no-any-return]

    extra = {"loss": 0.5, "steps": 2, "note": "hello", "blob": b"xyz", "done": True}
    client_app = ClientApp(
        client_fn=lambda context: Trainer(context, extra).to_client(),
        mods=[watch, numpy_client_mod],
    )
    result, _ = run(FixBN(FedAvg(fraction_evaluate=0.0), freeze_after=1), client_app, rounds=1)
    (reply, *_) = replies
    assert list(reply.array_records) == ["arrays"]
    assert dict(reply.metric_records["metrics"]) == {"loss": 0.5, "steps": 2, "num-examples": 8}
    assert dict(reply.config_records["config"]) == {"note": "hello", "blob": b"xyz", "done": True}
    assert result.train_metrics_clientapp[1]["loss"] == 0.5


def test_global_momentum_is_removed_from_the_metrics() -> None:
    strategy = FixBN(FedAvg(fraction_evaluate=0.0), freeze_after=1, momentum="global")
    result, _ = run(strategy, app({"loss": 0.5}))
    metrics = dict(result.train_metrics_clientapp[3])
    assert metrics.pop("fixbn-update-norm") > 0
    assert metrics.pop("fixbn-update-agreement") > 0
    assert metrics == {"loss": 0.5, "fixbn-clients": CLIENTS, "fixbn-dropped": 0}


class Truncating(Trainer):
    def fit(self, parameters: Any, config: Any) -> Any:
        arrays, examples, metrics = super().fit(parameters, config)
        return arrays[:-1], examples, metrics


class Refusing(Client):
    """A Client, not a NumPyClient, that returns a failure status."""

    def fit(self, ins: FitIns) -> FitRes:
        return FitRes(Status(Code.FIT_NOT_IMPLEMENTED, "no data"), ins.parameters, 0, {})


def test_the_error_names_a_wrong_number_of_arrays() -> None:
    client_app = ClientApp(
        client_fn=lambda context: Truncating(context).to_client(), mods=[numpy_client_mod]
    )
    with pytest.raises(RoundsFailedError, match="was sent 9 arrays and returned 8"):
        run(FixBN(FedAvg(), freeze_after=1), client_app)


def test_the_error_names_a_status_other_than_ok() -> None:
    client_app = ClientApp(client_fn=lambda _: Refusing(), mods=[numpy_client_mod])
    with pytest.raises(RoundsFailedError, match="no data"):
        run(FixBN(FedAvg(), freeze_after=1), client_app)


def test_a_clients_exception_reaches_the_server() -> None:
    class Failing(Trainer):
        def fit(self, parameters: Any, config: Any) -> Any:
            raise FileNotFoundError("no such folder: /data")

    client_app = ClientApp(
        client_fn=lambda context: Failing(context).to_client(), mods=[numpy_client_mod]
    )
    with pytest.raises(RoundsFailedError, match="no such folder: /data"):
        run(FixBN(FedAvg(), freeze_after=1), client_app)


def test_without_the_mod_the_error_names_the_record() -> None:
    with pytest.raises(RoundsFailedError, match=r"fitins\.parameters"):
        run(FixBN(FedAvg(), freeze_after=1), app(bridged=False))


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"arrayrecord_key": "model"}, "If it is there, leave the strategy's arrayrecord_key"),
        ({"weighted_by_key": "n"}, r"'n' is None .*numpy_client_mod returns it as 'num-examples'"),
    ],
)
def test_with_other_keys_the_error_names_those_of_the_mod(
    options: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(RoundsFailedError, match=remedy):
        run(FixBN(FedAvg(**options), freeze_after=1), app())


# Messages of the older generation


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_older_strategy_gives_the_same_bits_without_the_mod() -> None:
    finals = []
    for bridged in (True, False):
        grid = SerializingGrid(app({"note": "hello"}, bridged=bridged), CLIENTS)
        seen: list[Any] = []

        class Recording(OlderFedAvg):
            """Records the clients' metrics, in the order of clients, and the aggregate."""

            def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
                assert not failures
                results = sorted(results, key=lambda result: result[0].node_id)
                seen.append([result.metrics for _, result in results])  # noqa: B023
                aggregated = super().aggregate_fit(server_round, results, failures)
                seen.append(parameters_to_ndarrays(aggregated[0]))  # noqa: B023
                return aggregated

        arrays = [tensor.numpy() for tensor in network().state_dict().values()]
        context = LegacyContext(
            context=Context(1, 1, {}, RecordDict(), {}),
            config=ServerConfig(num_rounds=2),
            strategy=Recording(initial_parameters=ndarrays_to_parameters(arrays)),
        )
        DefaultWorkflow()(grid, context)
        assert seen[0] == [{"note": "hello"}] * CLIENTS
        assert context.history.losses_distributed[-1] == (2, pytest.approx(1))
        finals.append(seen[-1])
    for one, other in zip(*finals, strict=True):
        assert np.array_equal(one, other)


def test_other_messages_pass_through_unchanged() -> None:
    grid = SerializingGrid(app(), 1)
    (node_id,) = grid.get_node_ids()
    messages = [
        Message(RecordDict(), node_id, "query"),
        Message(RecordDict({"weights": ArrayRecord()}), node_id, "train"),
    ]
    context = grid.contexts[node_id]
    for message in messages:
        content = message.content
        reached: list[RecordDict] = []

        def answer(received: Message, _: Context) -> Message:
            reached.append(received.content)  # noqa: B023
            return Message(RecordDict(), reply_to=received)

        reply = numpy_client_mod(message, context, answer)
        assert reached == [content]
        assert reached[0] is content
        assert reply.content == RecordDict()
