"""FixBN around real strategies: rounds that fail or diverge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, RecordDict
from flwr.serverapp.strategy import (
    FedAvg,
    FedAvgM,
)
from torch import nn

from fixbn_flwr import FixBN
from fixbn_flwr.errors import (
    RoundsFailedError,
)
from fixbn_flwr.testing import FIRST_NODE_ID, SerializingGrid
from tests.support.clients import training_app
from tests.support.small_federation import (
    CLIENTS,
    ROUNDS,
    OnReply,
    batches,
    fedavg,
    federation,
    network,
    same,
    statistics_of,
)


def _failing(rounds: set[int]) -> OnReply:
    def on_reply(_: int, server_round: int, __: nn.Module, ___: RecordDict) -> None:
        if server_round in rounds:
            raise FileNotFoundError("/data/of/this/client is not there")

    return on_reply


def test_a_first_round_in_which_all_clients_fail_stops_with_their_messages() -> None:
    with pytest.raises(RoundsFailedError) as caught:
        federation(FixBN(fedavg(), freeze_after=1), on_reply=_failing({1}))
    message = str(caught.value)
    assert "round 1" in message
    for client in range(CLIENTS):
        assert f"client {FIRST_NODE_ID + client}:" in message
    assert message.count("/data/of/this/client is not there") == CLIENTS


def test_a_first_round_without_replies_stops_the_run() -> None:
    grid = SerializingGrid(training_app(network, batches), CLIENTS, lost=lambda _: True)
    with pytest.raises(RoundsFailedError, match="no reply arrived"):
        federation(FixBN(fedavg(), freeze_after=1), grid=grid)


def test_one_later_failed_round_is_tolerated_and_leaves_the_model_unchanged() -> None:
    result, of_round = federation(FixBN(fedavg(), freeze_after=1), on_reply=_failing({2}))
    assert same(of_round[2], of_round[1])
    assert not same(of_round[3], of_round[2])
    assert result.train_metrics_clientapp[2] == {"fixbn-clients": 0, "fixbn-dropped": CLIENTS}


def test_statistics_freeze_unchanged_if_the_last_round_of_exploration_fails() -> None:
    _, of_round = federation(FixBN(fedavg(), freeze_after=2), on_reply=_failing({2}))
    assert same(statistics_of(of_round[ROUNDS]), statistics_of(of_round[1]))


def test_a_successful_round_resets_the_count_of_failed_rounds() -> None:
    federation(FixBN(fedavg(), freeze_after=1), on_reply=_failing({2, 3, 5, 6}), rounds=7)


def test_three_failed_rounds_in_a_row_stop_the_run() -> None:
    with pytest.raises(RoundsFailedError, match=r"round 4: .*3 such rounds in a row"):
        federation(FixBN(fedavg(), freeze_after=1), on_reply=_failing({2, 3, 4, 5}), rounds=6)


def test_the_error_says_that_most_clients_diverged_in_calibration() -> None:
    def diverges(partition: int, server_round: int, _: nn.Module, content: RecordDict) -> None:
        if server_round > 1 and partition == 0:
            raise ConnectionError("this one is gone")
        if server_round > 1:
            record = content.array_records["arrays"]
            record["scale"] = Array(np.asarray(np.nan, np.float32))

    with pytest.raises(RoundsFailedError) as caught:
        federation(FixBN(fedavg(), freeze_after=1, guard=False), on_reply=diverges)
    assert "the run diverged in calibration" in str(caught.value)
    assert "a smaller learning_rate_factor" in str(caught.value)
    with pytest.raises(RoundsFailedError) as caught:
        federation(FixBN(fedavg(), freeze_after=1.0), on_reply=diverges)
    assert "in calibration. A learning" not in str(caught.value)


class Overflowing(FedAvg):
    """Returns a model in round 2 that overflows float32."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        if server_round == 2 and arrays is not None:
            arrays["scale"] = Array(np.asarray(np.inf, np.float32))
        return arrays, metrics


@pytest.mark.parametrize("momentum", ["local", "global"])
def test_an_average_that_is_not_finite_is_rejected(
    momentum: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = FixBN(
        Overflowing(fraction_evaluate=0.0), freeze_after=1, momentum=momentum, guard=False
    )
    _, of_round = federation(strategy)
    assert (
        "Overflowing produced NaN or infinity from finite updates, first in 'scale'" in caplog.text
    )
    assert same(of_round[2], of_round[1])
    assert not same(of_round[3], of_round[2])
    assert all(np.isfinite(array).all() for array in of_round[ROUNDS].values())


class FarTooFar(FedAvgM):
    """Produces infinity from finite replies in round 2."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        if server_round == 2:
            for reply in replies:
                reply.content["arrays"]["scale"] = Array(np.asarray(3e38, np.float32))
        with np.errstate(over="ignore", invalid="ignore"):
            return super().aggregate_train(server_round, replies)


def test_infinite_momentum_of_the_server_is_discarded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = FarTooFar(fraction_evaluate=0.0, server_learning_rate=2.0, server_momentum=0.9)
    _, of_round = federation(FixBN(strategy, freeze_after=1, guard=False))
    assert "FarTooFar produced NaN or infinity from finite updates, first in 'scale'" in caplog.text
    assert same(of_round[2], of_round[1])
    assert not same(of_round[3], of_round[2])
    assert all(np.isfinite(array).all() for array in of_round[ROUNDS].values())
