"""FixBN around real strategies: the arrays and configs that the wrapped strategy receives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    Result,
    Strategy,
)
from torch import nn

from fixbn_flwr import FixBN
from fixbn_flwr.errors import (
    ConfigError,
)
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, partition_of, training_app
from tests.support.small_federation import (
    CLIENTS,
    ROUNDS,
    WatchedFedAvg,
    batches,
    fedavg,
    federation,
    network,
    same,
    statistics_of,
)


@pytest.mark.parametrize("momentum", ["local", "global"])
def test_a_users_strategy_receives_complete_models(momentum: str) -> None:
    strategy = WatchedFedAvg()
    federation(FixBN(strategy, freeze_after=2, momentum=momentum))
    assert strategy.seen == {*network().state_dict()}


SERVER_OPTIMISERS: list[Callable[[], Strategy]] = [
    lambda: FedAdam(fraction_evaluate=0.0),
    lambda: FedYogi(fraction_evaluate=0.0),
    lambda: FedAdagrad(fraction_evaluate=0.0),
    lambda: FedAvgM(fraction_evaluate=0.0, server_momentum=0.9, server_learning_rate=0.5),
    lambda: FedProx(fraction_evaluate=0.0, proximal_mu=0.1),
    lambda: DifferentialPrivacyServerSideFixedClipping(fedavg(), 0.1, 0.1, CLIENTS),
]


@pytest.mark.parametrize("make", SERVER_OPTIMISERS)
def test_server_optimisers_change_only_parameters(make: Callable[[], Strategy]) -> None:
    """The first round's statistics equal FedAvg's bit for bit, and S* does not change."""
    plain, of_plain = federation(FixBN(fedavg(), freeze_after=1))
    result, of_round = federation(FixBN(make(), freeze_after=1))
    assert same(statistics_of(of_round[1]), statistics_of(of_plain[1]))
    assert same(statistics_of(of_round[ROUNDS]), statistics_of(of_round[1]))
    assert np.all(of_round[ROUNDS]["norm.running_var"] > 0)
    for server_round in range(1, ROUNDS + 1):
        assert result.train_metrics_clientapp[server_round]["fixbn-dropped"] == 0
        before, after = of_round[server_round - 1], of_round[server_round]
        assert not np.array_equal(before["first.weight"], after["first.weight"])
        assert {n: a.dtype for n, a in before.items()} == {n: a.dtype for n, a in after.items()}
    assert isinstance(plain, Result)


def test_variance_stays_positive_where_fedadam_alone_makes_it_negative() -> None:
    arrays = initial_arrays(network())
    arrays["norm.running_var"] = Array(np.full(5, 0.001, np.float32))

    def shrink(_: int, __: int, ___: nn.Module, content: RecordDict) -> None:
        content.array_records["arrays"]["norm.running_var"] = Array(np.full(5, 1e-4, np.float32))

    alone, _ = federation(
        FedAdam(fraction_evaluate=0.0, tau=1e-5), arrays=arrays, on_reply=shrink, rounds=1
    )
    assert alone.arrays["norm.running_var"].numpy().min() < 0  # FedAdam alone fails
    inside, _ = federation(
        FixBN(FedAdam(fraction_evaluate=0.0, tau=1e-5), freeze_after=1.0),
        arrays=arrays,
        on_reply=shrink,
        rounds=1,
    )
    np.testing.assert_allclose(inside.arrays["norm.running_var"].numpy(), 1e-4, rtol=1e-6)


@pytest.mark.parametrize("wrong", [OlderFedAvg(), FixBN(fedavg(), freeze_after=1), "FedAvg", None])
def test_only_message_api_strategies_can_be_wrapped(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=type(wrong).__name__):
        FixBN(wrong, freeze_after=1)


def test_evaluation_receives_the_complete_model() -> None:
    received: list[list[str]] = []
    evaluating = ClientApp()
    trainer = training_app(network, batches)

    @evaluating.train()
    def train(message: Message, context: Context) -> Message:
        return trainer(message, context)

    @evaluating.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        received.append(list(message.content.array_records["arrays"]))
        metrics = MetricRecord({"num-examples": 1 + partition_of(context), "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    result, _ = federation(
        FixBN(FedAvg(), freeze_after=1), grid=SerializingGrid(evaluating, CLIENTS)
    )
    assert received == [list(initial_arrays(network()))] * CLIENTS * ROUNDS
    assert result.evaluate_metrics_clientapp[ROUNDS] == {"accuracy": 0.5}


def test_the_config_of_a_round_contains_fixbns_keys() -> None:
    """The config contains the user's keys, Flower's and FixBN's, and no others."""
    configs: list[dict[str, object]] = []
    trainer = training_app(network, batches)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if partition_of(context) == 0:
            configs.append(dict(message.content.config_records["config"]))
            configs[-1]["records"] = sorted(message.content)
        return trainer(message, context)

    config = ConfigRecord({"local-epochs": 3})
    strategy = FixBN(fedavg(), freeze_after=1, momentum="global", learning_rate_factor=0.1)
    federation(strategy, grid=SerializingGrid(app, CLIENTS), rounds=2, train_config=config)
    common = {"local-epochs": 3, "fixbn-momentum": "global"}
    assert configs == [
        {
            **common,
            "server-round": 1,
            "fixbn-phase": "exploration",
            "fixbn-learning-rate-factor": 1.0,
            "records": ["arrays", "config"],
        },
        {
            **common,
            "server-round": 2,
            "fixbn-phase": "calibration",
            "fixbn-learning-rate-factor": 0.1,
            "fixbn-kept-round": 1,
            "records": ["arrays", "config", "fixbn-momentum"],
        },
    ]
    assert config == {"local-epochs": 3, "server-round": 2}  # as without FixBN
