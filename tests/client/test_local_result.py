"""Comparing gradients in a federation, in both generations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.optim import SGD

from fixbn_flwr import FixBN, local_training, numpy_client_mod
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.legacy import FixBN as OlderFixBN
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, partition_of, sgd_step
from tests.support.older_generation import arrays_of, load, run_older
from tests.support.small_federation import batches, network

CLIENTS, ROUNDS = 3, 6
COMPARED = {"fixbn-gradient-cosine", "fixbn-gradient-norm-ratio"}


def train(model: nn.Module, received: Any, context: Context, compares: bool) -> Any:
    optimizer = SGD(model.parameters(), 0.05, 0.9)
    config = received["config"] if isinstance(received, RecordDict) else received
    own = batches(partition_of(context), int(config["server-round"]))
    with local_training(model, optimizer, received, context) as local:
        if compares:
            points, targets = own[0]
            local.compare_gradients(lambda: nn.functional.cross_entropy(model(points), targets))
        for batch in own:
            sgd_step(model, optimizer, batch)
    return local


class Comparing(NumPyClient):
    def __init__(self, context: Context, *, compares: bool = True) -> None:
        self.context, self.compares = context, compares

    def fit(self, parameters: Any, config: Any) -> Any:
        model = network()
        load(model, parameters)
        local = train(model, config, self.context, compares=self.compares)
        return arrays_of(model), 8, {**local.metrics}


def message_app(*, compares: bool = True) -> ClientApp:
    app = ClientApp()

    @app.train()
    def _(message: Message, context: Context) -> Message:
        model = network()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        local = train(model, message.content, context, compares)
        metrics = MetricRecord({"num-examples": 8})
        arrays = ArrayRecord(model.state_dict())
        content = RecordDict({"arrays": arrays, "metrics": metrics, **local.records})
        return Message(content, reply_to=message)

    return app


def run(*, compares: bool = True, **options: Any) -> Any:
    strategy = FixBN(FedAvg(fraction_evaluate=0.0), freeze_after=4, **options)
    grid = SerializingGrid(message_app(compares=compares), CLIENTS)
    return strategy.start(grid, initial_arrays(network()), ROUNDS)


@pytest.mark.parametrize("momentum", ["local", "global"])
def test_gradients_are_compared_every_n_rounds_until_t(momentum: str) -> None:
    metrics = run(compare_gradients_every=2, momentum=momentum).train_metrics_clientapp
    assert [r for r in metrics if metrics[r].keys() & COMPARED] == [2, 4]
    assert all(-1 <= metrics[r]["fixbn-gradient-cosine"] < 0.999 for r in (2, 4))
    assert all(metrics[r]["fixbn-gradient-norm-ratio"] > 0 for r in (2, 4))


def test_comparing_changes_no_bit_of_the_run() -> None:
    plain, compared = run(), run(compare_gradients_every=1)
    assert {n: a.data for n, a in plain.arrays.items()} == {
        n: a.data for n, a in compared.arrays.items()
    }


def test_clients_that_do_not_compare_are_averaged_as_always() -> None:
    metrics = run(compare_gradients_every=1, compares=False).train_metrics_clientapp
    assert not any(of_round.keys() & COMPARED for of_round in metrics.values())
    assert all(of_round["fixbn-clients"] == CLIENTS for of_round in metrics.values())


def test_a_numpy_client_that_could_not_compare_is_averaged_too() -> None:
    """Its first batch may have no gradient. Its reply differs from the others' in this alone."""

    def client(context: Context) -> Client:
        return Comparing(context, compares=partition_of(context) > 0).to_client()

    app = ClientApp(client_fn=client, mods=[numpy_client_mod])
    strategy = FixBN(FedAvg(fraction_evaluate=0.0), freeze_after=4, compare_gradients_every=1)
    result = strategy.start(SerializingGrid(app, CLIENTS), initial_arrays(network()), 2)
    for metrics in result.train_metrics_clientapp.values():
        assert metrics["fixbn-clients"] == CLIENTS
        assert metrics.keys() >= COMPARED


def test_the_older_generation_reports_the_same_numbers() -> None:
    seen: dict[int, dict[str, Any]] = {}

    class Seen(OlderFixBN):
        def aggregate_fit(self, server_round: int, *arguments: Any) -> Any:
            arrays, seen[server_round] = super().aggregate_fit(server_round, *arguments)
            return arrays, seen[server_round]

    given: list[dict[str, Any]] = []

    def averaged(metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        given.extend(own for _, own in metrics)
        return {}

    initial = ndarrays_to_parameters(arrays_of(network()))
    inner = OlderFedAvg(
        initial_parameters=initial, fraction_evaluate=0.0, fit_metrics_aggregation_fn=averaged
    )
    strategy = Seen(
        inner, freeze_after=4, parameter_names=list(network().state_dict()), num_rounds=ROUNDS,
        compare_gradients_every=2,
    )  # fmt: skip
    app = ClientApp(client_fn=lambda context: Comparing(context).to_client())
    run_older(strategy, app, ROUNDS, clients=CLIENTS)
    newer = run(compare_gradients_every=2).train_metrics_clientapp
    assert [r for r in seen if seen[r].keys() & COMPARED] == [2, 4]
    for name in COMPARED:
        assert seen[2][name] == pytest.approx(newer[2][name], rel=1e-6)
    assert given == [{}] * len(given)  # the user's function sees its own metrics only


@pytest.mark.parametrize("every", [-1, 0.5, True, "often"])
def test_an_interval_is_a_number_of_rounds(every: Any) -> None:
    with pytest.raises(ConfigError, match="is no number of rounds: use an int such as 10"):
        FixBN(FedAvg(), freeze_after=4, compare_gradients_every=every)


def test_without_fixbn_nothing_is_compared() -> None:
    context = Context(1, 1, {}, state=RecordDict(), run_config={})
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    with local_training(model, optimizer, {"lr": 1}, context) as local:
        local.compare_gradients(lambda: torch.tensor(1 / 0))
    assert (local.records, local.metrics) == ({}, {})
