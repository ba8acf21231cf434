"""FixBN around real strategies, with real clients, without Ray (see fixbn_flwr.testing)."""

from __future__ import annotations

import copy
import itertools
import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
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
from torch import Tensor, nn

from fixbn_flwr import FixBN, Phase
from fixbn_flwr.errors import (
    ConfigError,
    NoStatisticsError,
    RoundsFailedError,
    StatisticsMovedError,
)
from fixbn_flwr.method.averaging import Kind, kind_of
from fixbn_flwr.testing import FIRST_NODE_ID, SerializingGrid
from tests.support.clients import initial_arrays, partition_of, training_app
from tests.support.small_federation import (
    CLIENTS,
    ROUNDS,
    OnReply,
    batches,
    corrupt,
    fedavg,
    federation,
    network,
    same,
    statistics_of,
)

# The two stages


def test_exploration_averages_the_statistics() -> None:
    returned: dict[int, dict[str, np.ndarray]] = {}

    def on_reply(partition: int, server_round: int, _: nn.Module, content: RecordDict) -> None:
        record = content.array_records["arrays"]
        returned[partition] = {name: a.numpy() for name, a in record.items()}

    examples = [1, 2, 3, 4]
    app = training_app(network, batches, on_reply=on_reply, examples=examples)
    grid = SerializingGrid(app, CLIENTS)
    result, _ = federation(FixBN(fedavg(), freeze_after=1.0), grid=grid, rounds=1)
    for name, array in result.arrays.items():
        own = [returned[partition][name].astype(np.float64) for partition in range(CLIENTS)]
        if kind_of(name, own[0].dtype) is not Kind.COUNTER and name != "positions":
            expected = sum(x * n / 10 for x, n in zip(own, examples, strict=True))
            np.testing.assert_allclose(array.numpy(), expected, rtol=1e-5, atol=1e-7)
    assert result.arrays["norm.running_mean"].numpy().any()


def test_pooled_statistics_have_the_larger_variance() -> None:
    mean, _ = federation(FixBN(fedavg(), freeze_after=1.0), rounds=1)
    pooled, _ = federation(FixBN(fedavg(), freeze_after=1.0, statistics="pooled"), rounds=1)
    assert np.all(
        pooled.arrays["norm.running_var"].numpy() > mean.arrays["norm.running_var"].numpy()
    )
    assert np.array_equal(
        pooled.arrays["norm.running_mean"].numpy(), mean.arrays["norm.running_mean"].numpy()
    )
    assert np.array_equal(
        pooled.arrays["first.weight"].numpy(), mean.arrays["first.weight"].numpy()
    )


@pytest.mark.parametrize("momentum", ["reset", "local", "global"])
@pytest.mark.parametrize("statistics", ["mean", "pooled"])
def test_statistics_are_bit_identical_from_the_switch_on(momentum: str, statistics: str) -> None:
    trained_with: dict[int, list[dict[str, np.ndarray]]] = {}

    def on_reply(_: int, server_round: int, model: nn.Module, __: RecordDict) -> None:
        state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
        trained_with.setdefault(server_round, []).append(statistics_of(state))

    strategy = FixBN(fedavg(), freeze_after=2, momentum=momentum, statistics=statistics)
    result, of_round = federation(strategy, on_reply=on_reply)
    frozen = statistics_of(of_round[2])
    assert strategy.frozen_statistics is not None
    assert same(strategy.frozen_statistics, frozen)
    for server_round in (3, 4):
        assert same(statistics_of(of_round[server_round]), frozen)
        assert len(trained_with[server_round]) == CLIENTS
        assert all(same(own, frozen) for own in trained_with[server_round])
        # Everything that is trained moves, BN's affine parameters too.
        for name in ("first.weight", "norm.weight", "norm.bias", "last.weight", "scale"):
            before, after = of_round[server_round - 1][name], of_round[server_round][name]
            assert not np.array_equal(before, after), name
    # In exploration each client has its own, and the server the average, another each round.
    assert not any(same(own, frozen) for own in trained_with[2])
    assert not same(statistics_of(of_round[1]), frozen)
    assert same({n: a.numpy() for n, a in result.arrays.items()}, of_round[4])


def test_phase_and_frozen_statistics_by_round() -> None:
    seen: list[tuple[Phase, bool]] = []
    strategy = FixBN(fedavg(), freeze_after=0.5)

    def on_reply(partition: int, *_: object) -> None:
        if partition == 0:
            seen.append((strategy.phase, strategy.frozen_statistics is not None))

    federation(strategy, on_reply=on_reply)
    assert seen == [(Phase.EXPLORATION, False)] * 2 + [(Phase.CALIBRATION, True)] * 2


def test_an_int_is_rounds_and_a_float_a_share() -> None:
    phases = {}
    for freeze_after in (1, 1.0, 0.25, 3):
        strategy = FixBN(fedavg(), freeze_after=freeze_after)
        _, of_round = federation(strategy)
        same_as_before = [
            same(statistics_of(of_round[t]), statistics_of(of_round[t - 1]))
            for t in range(1, ROUNDS + 1)
        ]
        phases[repr(freeze_after)] = same_as_before
    assert phases == {
        "1": [False, True, True, True],
        "1.0": [False] * 4,
        "0.25": [False, True, True, True],
        "3": [False, False, False, True],
    }


def test_the_model_is_whole_and_in_its_own_order_and_types() -> None:
    expected = {name: (str(a.dtype), a.shape) for name, a in initial_arrays(network()).items()}
    result, _ = federation(FixBN(fedavg(), freeze_after=1))
    got = {name: (str(a.dtype), a.shape) for name, a in result.arrays.items()}
    assert list(got.items()) == list(expected.items())
    network().load_state_dict(result.arrays.to_torch_state_dict())


def test_counters_stay_integers() -> None:
    _, of_round = federation(FixBN(fedavg(), freeze_after=2))
    counts = [of_round[t]["norm.num_batches_tracked"] for t in range(ROUNDS + 1)]
    assert [int(count) for count in counts] == [0, 2, 4, 4, 4]  # two batches a round, then left
    assert all(count.dtype == np.int64 and count.shape == () for count in counts)


def test_other_integers_survive() -> None:
    """Flower's average makes 0.999... of 1 and torch truncates it to 0 on loading."""
    app = training_app(network, batches, examples=[1, 2, 3, 1])
    result, _ = federation(FixBN(fedavg(), freeze_after=1), grid=SerializingGrid(app, CLIENTS))
    assert result.arrays["positions"].numpy().tolist() == list(range(7))
    assert result.arrays["positions"].dtype == "int64"
    assert result.train_metrics_clientapp[ROUNDS]["fixbn-clients"] == CLIENTS


# The wrapped strategy


class Watching(FedAvg):
    """Notes which arrays a wrapped strategy sees."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=1.0)
        self.seen: set[str] = set()
        self.rounds: list[tuple[str, int]] = []

    def configure_train(self, server_round: int, arrays: ArrayRecord, *args: Any) -> Any:
        self.seen |= arrays.keys()
        self.rounds.append(("train", server_round))
        return super().configure_train(server_round, arrays, *args)

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, *args: Any) -> Any:
        self.seen |= arrays.keys()
        self.rounds.append(("evaluate", server_round))
        return super().configure_evaluate(server_round, arrays, *args)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        for reply in replies:
            for record in reply.content.array_records.values():
                self.seen |= record.keys()
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self.seen |= arrays.keys()
        return arrays, metrics


@pytest.mark.parametrize("momentum", ["local", "global"])
def test_a_users_strategy_sees_whole_models(momentum: str) -> None:
    strategy = Watching()
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
def test_server_optimisers_change_parameters_only(make: Callable[[], Strategy]) -> None:
    """The first round's statistics are FedAvg's to the bit, S* stays, all rounds average."""
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
    assert alone.arrays["norm.running_var"].numpy().min() < 0  # the trap is real
    inside, _ = federation(
        FixBN(FedAdam(fraction_evaluate=0.0, tau=1e-5), freeze_after=1.0),
        arrays=arrays,
        on_reply=shrink,
        rounds=1,
    )
    np.testing.assert_allclose(inside.arrays["norm.running_var"].numpy(), 1e-4, rtol=1e-6)


@pytest.mark.parametrize("wrong", [OlderFedAvg(), FixBN(fedavg(), freeze_after=1), "FedAvg", None])
def test_wraps_message_api_strategies_only(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=type(wrong).__name__):
        FixBN(wrong, freeze_after=1)


def test_evaluation_gets_the_whole_model() -> None:
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


def test_the_config_of_a_round() -> None:
    """The user's own keys, Flower's, and exactly ours."""
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
            "records": ["arrays", "config", "fixbn-momentum"],
        },
    ]
    assert config == {"local-epochs": 3, "server-round": 2}  # as FedAvg leaves it without FixBN


# Momentum


def momentum_by_round(mode: str, fraction: float = 1.0) -> dict[int, dict[int, list[Tensor]]]:
    """The buffer of `first.bias` at the start and at the end of each training, by client, round."""
    log: dict[int, dict[int, list[Tensor]]] = {}

    class Noting(torch.optim.SGD):
        noted: Tensor | None = None

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            if self.noted is None:
                bias = self.param_groups[0]["params"][2]  # scale, first.weight, first.bias
                self.noted = self.state[bias].get("momentum_buffer", torch.zeros(5)).clone()
            return super().step(closure)

    optimisers: dict[int, Noting] = {}

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        return optimisers.setdefault(id(model), Noting(model.parameters(), 0.05, momentum=0.9))

    def on_reply(partition: int, server_round: int, model: nn.Module, _: RecordDict) -> None:
        optimizer = optimisers[id(model)]
        bias = optimizer.param_groups[0]["params"][2]
        assert optimizer.noted is not None
        end = optimizer.state[bias]["momentum_buffer"].clone()
        log.setdefault(server_round, {})[partition] = [optimizer.noted, end]
        optimizer.noted = None

    random.seed(0)  # FedAvg draws from it who takes part
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
def test_local_goes_on_from_the_clients_own(fraction: float) -> None:
    log = momentum_by_round("local", fraction)
    kept: dict[int, Tensor] = {}
    for server_round in range(1, ROUNDS + 1):
        assert len(log[server_round]) == CLIENTS * fraction
        for client, (start, end) in log[server_round].items():
            assert torch.equal(start, kept.get(client, torch.zeros(5)))
            kept[client] = end
    assert len(kept) > CLIENTS * fraction or fraction == 1.0  # others took part in later rounds


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_global_starts_from_the_average_of_those_that_answered(fraction: float) -> None:
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
    """SGD without momentum: a step is as long as the rate, so a tenth of the rate a tenth."""

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

    whole, _ = first_step(1.0)
    tenth, rates = first_step(0.1)
    assert tenth == pytest.approx(whole / 10, rel=1e-4)
    assert rates == [0.05] * CLIENTS * 2


# Replies that must not be averaged


def _nan(array: np.ndarray) -> np.ndarray:
    array.flat[0] = np.nan
    return array


def _metrics(**metrics: float) -> OnReply:
    def on_reply(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
        if partition == 1:
            content["metrics"] = MetricRecord(
                {key.replace("_", "-"): value for key, value in metrics.items()}
            )

    return on_reply


def _missing(name: str) -> OnReply:
    def on_reply(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
        if partition == 1:
            del content.array_records["arrays"][name]

    return on_reply


def _renamed_record(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
    if partition == 1:
        content["weights"] = content.array_records["arrays"]
        del content["arrays"]


def _unreadable(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
    if partition == 1:
        content.array_records["arrays"]["scale"] = Array("float32", (), "numpy.ndarray", b"junk")


BAD_REPLIES = {
    "NaN": (corrupt("first.weight", _nan), "first.weight"),
    "infinite statistic": (corrupt("norm.running_mean", lambda a: a + np.inf), "running_mean"),
    "negative variance": (corrupt("norm.running_var", lambda a: -a), "below zero"),
    "shape": (corrupt("first.bias", lambda a: a[:-1]), "first.bias"),
    "type": (corrupt("first.bias", lambda a: a.astype(np.int64)), "int64"),
    "missing array": (_missing("norm.running_mean"), "running_mean"),
    "negative examples": (_metrics(num_examples=-3), "num-examples"),
    "weight missing": (_metrics(accuracy=1.0), "num-examples"),
    "weight NaN": (_metrics(num_examples=float("nan")), "num-examples"),
    "other metrics": (_metrics(num_examples=8, extra=1.0), "names"),
    "other record": (_renamed_record, "names"),
    "unreadable": (_unreadable, "read"),
}


@pytest.mark.parametrize("case", BAD_REPLIES)
def test_a_bad_reply_is_dropped_named_and_counted(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The result is that of the federation in which this client never answered."""
    on_reply, reason = BAD_REPLIES[case]
    result, of_round = federation(FixBN(fedavg(), freeze_after=1), on_reply=on_reply, rounds=2)
    assert [result.train_metrics_clientapp[t]["fixbn-clients"] for t in (1, 2)] == [3, 3]
    assert [result.train_metrics_clientapp[t]["fixbn-dropped"] for t in (1, 2)] == [1, 1]
    dropped = [r.getMessage() for r in caplog.records if "reply dropped" in r.getMessage()]
    assert len(dropped) == 2
    assert all(f"client {FIRST_NODE_ID + 1}" in line and reason in line for line in dropped)
    silent = SerializingGrid(
        training_app(network, batches),
        CLIENTS,
        lost=lambda message: message.metadata.dst_node_id == FIRST_NODE_ID + 1,
    )
    _, of_silent = federation(FixBN(fedavg(), freeze_after=1), grid=silent, rounds=2)
    assert same(of_round[2], of_silent[2])


def test_global_momentum_is_checked_like_the_arrays(caplog: pytest.LogCaptureFixture) -> None:
    def on_reply(partition: int, server_round: int, _: nn.Module, content: RecordDict) -> None:
        momentum = content.array_records["fixbn-momentum"]
        if partition == 0:
            momentum["first.bias"] = Array(np.full(5, np.nan, np.float32))
        elif partition == 1:
            momentum["norm.running_mean"] = Array(np.zeros(5, np.float32))
        elif partition == 2:
            del content["fixbn-momentum"]

    strategy = FixBN(fedavg(), freeze_after=1, momentum="global")
    result, _ = federation(strategy, on_reply=on_reply, rounds=1)
    assert result.train_metrics_clientapp[1]["fixbn-clients"] == 1
    for reason in ("first.bias (momentum)", "'norm.running_mean', float32", "**local.records"):
        assert reason in caplog.text


def test_other_names_of_momentum_are_dropped_instead_of_ending_the_run() -> None:
    def on_reply(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
        if partition == 2:
            del content.array_records["fixbn-momentum"]["scale"]

    strategy = FixBN(fedavg(), freeze_after=1, momentum="global")
    result, _ = federation(strategy, on_reply=on_reply)
    assert [record["fixbn-dropped"] for record in result.train_metrics_clientapp.values()] == [
        1
    ] * 4


def test_a_thawed_client_is_warned_about_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    thaw = corrupt("norm.running_mean", lambda a: a + 1)
    _, of_round = federation(FixBN(fedavg(), freeze_after=1), on_reply=thaw, rounds=2)
    assert same(statistics_of(of_round[2]), statistics_of(of_round[1]))
    thawed = [r for r in caplog.records if "it did not freeze them" in r.getMessage()]
    assert len(thawed) == 1  # none in exploration
    assert f"client {FIRST_NODE_ID + 1} returned 1 of 2" in thawed[0].getMessage()


def test_a_thawed_client_ends_a_strict_run() -> None:
    thaw = corrupt("norm.running_mean", lambda a: a + 1)
    with pytest.raises(StatisticsMovedError, match=f"client {FIRST_NODE_ID + 1}"):
        federation(FixBN(fedavg(), freeze_after=1, strict=True), on_reply=thaw)
    federation(FixBN(fedavg(), freeze_after=1, strict=True))  # nobody thaws: no complaint


# Rounds that fail


def _failing(rounds: set[int]) -> OnReply:
    def on_reply(_: int, server_round: int, __: nn.Module, ___: RecordDict) -> None:
        if server_round in rounds:
            raise FileNotFoundError("/data/of/this/client is not there")

    return on_reply


def test_a_first_round_in_which_all_fail_stops_with_the_clients_own_words() -> None:
    with pytest.raises(RoundsFailedError) as caught:
        federation(FixBN(fedavg(), freeze_after=1), on_reply=_failing({1}))
    message = str(caught.value)
    assert "round 1" in message
    for client in range(CLIENTS):
        assert f"client {FIRST_NODE_ID + client}:" in message
    assert message.count("/data/of/this/client is not there") == CLIENTS


def test_a_first_round_in_which_nobody_answers_stops() -> None:
    grid = SerializingGrid(training_app(network, batches), CLIENTS, lost=lambda _: True)
    with pytest.raises(RoundsFailedError, match="no reply arrived"):
        federation(FixBN(fedavg(), freeze_after=1), grid=grid)


def test_one_failed_round_later_is_tolerated_and_the_model_stays() -> None:
    result, of_round = federation(FixBN(fedavg(), freeze_after=1), on_reply=_failing({2}))
    assert same(of_round[2], of_round[1])
    assert not same(of_round[3], of_round[2])
    assert result.train_metrics_clientapp[2] == {"fixbn-clients": 0, "fixbn-dropped": CLIENTS}


def test_statistics_freeze_as_they_are_when_the_last_round_of_exploration_fails() -> None:
    _, of_round = federation(FixBN(fedavg(), freeze_after=2), on_reply=_failing({2}))
    assert same(statistics_of(of_round[ROUNDS]), statistics_of(of_round[1]))


def test_two_failed_rounds_and_a_good_one_start_the_count_anew() -> None:
    federation(FixBN(fedavg(), freeze_after=1), on_reply=_failing({2, 3, 5, 6}), rounds=7)


def test_three_failed_rounds_in_a_row_stop() -> None:
    with pytest.raises(RoundsFailedError, match=r"round 4: .*3 such rounds in a row"):
        federation(FixBN(fedavg(), freeze_after=1), on_reply=_failing({2, 3, 4, 5}), rounds=6)


# What is refused or warned about


def test_a_model_without_statistics_is_refused() -> None:
    arrays = initial_arrays(nn.Sequential(nn.Linear(6, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3)))
    with pytest.raises(NoStatisticsError, match=r"freeze_after=1\.0"):
        FixBN(fedavg(), freeze_after=1).start(SerializingGrid(ClientApp(), 2), arrays, 3)


def test_a_server_that_sends_parameters_only_is_told_what_to_do() -> None:
    arrays = ArrayRecord({name: p.detach() for name, p in network().named_parameters()})
    with pytest.raises(NoStatisticsError, match=r"model\.state_dict\(\), not only parameters\(\)"):
        federation(FixBN(fedavg(), freeze_after=1), arrays=arrays)


def test_a_client_that_sends_parameters_only_is_told_what_to_do() -> None:
    def on_reply(_: int, __: int, model: nn.Module, content: RecordDict) -> None:
        named = {name: p.detach() for name, p in model.named_parameters()}
        content["arrays"] = ArrayRecord(named)

    with pytest.raises(RoundsFailedError, match=r"return all of model\.state_dict\(\)"):
        federation(FixBN(fedavg(), freeze_after=1), on_reply=on_reply)


def test_a_client_without_local_training_thaws_and_is_told() -> None:
    """The freeze is the client's deed: one that knows nothing of FixBN trains with its own."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = network()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        model.train()(batches(partition_of(context), 1)[0][0])
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    with pytest.raises(StatisticsMovedError, match="with local_training"):
        federation(FixBN(fedavg(), freeze_after=1, strict=True), grid=SerializingGrid(app, CLIENTS))


@pytest.mark.parametrize(
    ("freeze_after", "warning"),
    [
        (0, "Only a pretrained model has"),
        (4, "never freezes"),
        (9, "never freezes"),
        (0.99, "never freezes"),
        (1.0, None),
        (1, None),
        (0.5, None),
    ],
)
def test_warnings_at_the_start(
    freeze_after: int | float, warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    federation(FixBN(fedavg(), freeze_after=freeze_after))
    said = [r.getMessage() for r in caplog.records if "freeze_after" in r.getMessage()]
    assert len(said) == (warning is not None)
    assert warning is None or warning in said[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"freeze_after": -1},
        {"momentum": "locale"},
        {"statistics": "median"},
        {"learning_rate_factor": 0.0},
        {"learning_rate_factor": float("nan")},
    ],
)
def test_wrong_values_are_refused_when_made(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        FixBN(fedavg(), **{"freeze_after": 1, **wrong})


@pytest.mark.parametrize("first_round", [0, -1, 5])
def test_a_first_round_that_is_none_is_refused(first_round: int) -> None:
    with pytest.raises(ConfigError, match=f"first_round={first_round}"):
        federation(FixBN(fedavg(), freeze_after=1), first_round=first_round)


# Same bits


@pytest.mark.parametrize("momentum", ["reset", "local", "global"])
def test_neither_the_order_of_asking_nor_of_replies_changes_a_bit(momentum: str) -> None:
    app = training_app(network, batches, examples=[1, 7, 3, 5])
    results = []
    for seed in (None, 1, 2):
        random.seed(seed)  # FedAvg asks in an order drawn from it
        grid = SerializingGrid(app, CLIENTS, shuffle_seed=seed)
        strategy = FixBN(fedavg(), freeze_after=2, momentum=momentum, statistics="pooled")
        results.append(federation(strategy, grid=grid)[1][ROUNDS])
    assert all(same(one, other) for one, other in itertools.pairwise(results))


@pytest.mark.parametrize(
    ("freeze_after", "done"), [(2, 1), (2, 2), (2, 3), (0.5, 3), (1, 2), (3, 2)]
)
def test_a_resumed_run_is_the_whole_one(freeze_after: int | float, done: int) -> None:
    """Bit for bit with momentum "reset", round numbers included."""
    whole, of_whole = federation(FixBN(fedavg(), freeze_after=freeze_after, momentum="reset"))
    checkpoint = ArrayRecord({name: Array(a) for name, a in of_whole[done].items()})
    inner = Watching()
    random.seed(5)  # other draws than those of the whole run
    rest, of_rest = federation(
        FixBN(inner, freeze_after=freeze_after, momentum="reset"),
        arrays=copy.deepcopy(checkpoint),
        first_round=done + 1,
    )
    assert same(of_rest[ROUNDS], of_whole[ROUNDS])
    assert sorted(of_rest) == list(range(done, ROUNDS + 1))
    assert sorted(rest.train_metrics_clientapp) == list(range(done + 1, ROUNDS + 1))
    assert sorted(rest.evaluate_metrics_clientapp) == list(range(done + 1, ROUNDS + 1))
    assert rest.evaluate_metrics_serverapp[ROUNDS] == {"round": ROUNDS}
    assert inner.rounds[0] == ("train", done + 1)
    assert sorted(whole.train_metrics_clientapp) == list(range(1, ROUNDS + 1))


def test_zero_rounds_return_the_initial_arrays() -> None:
    arrays = initial_arrays(network())
    result = FixBN(fedavg(), freeze_after=1.0).start(SerializingGrid(ClientApp(), 2), arrays, 0)
    assert result.arrays == arrays


def test_a_share_needs_start() -> None:
    strategy = FixBN(fedavg(), freeze_after=0.5)
    grid = SerializingGrid(ClientApp(), 2)
    with pytest.raises(ConfigError, match="start"):
        strategy.configure_train(1, initial_arrays(network()), ConfigRecord(), grid)


def test_the_summary_says_what_was_chosen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flwr")
    FixBN(fedavg(), freeze_after=7, momentum="global", learning_rate_factor=0.1).summary()
    assert "freeze_after 7 | momentum global | statistics mean | learning rate x 0.1" in caplog.text
    assert "Sampling" in caplog.text


class Meddling(SerializingGrid):
    """A grid that adds replies of its own in the first round: another message's, another node's."""

    def __init__(self, extra: str) -> None:
        super().__init__(training_app(network, batches), CLIENTS)
        self.extra, self.first = extra, True

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if not self.first:
            return replies
        self.first = False
        (own,) = [r for r in replies if r.metadata.src_node_id == FIRST_NODE_ID + 1]
        again = copy.deepcopy(own)
        for name in again.content.array_records["arrays"]:
            array = again.content.array_records["arrays"][name].numpy()
            again.content.array_records["arrays"][name] = Array(np.asarray(array + 1, array.dtype))
        if self.extra == "another round":
            again.metadata.__dict__["_reply_to_message_id"] = "message-999"
            return [*(reply for reply in replies if reply is not own), again]
        if self.extra == "another node":
            again.metadata.__dict__["_src_node_id"] = 77
        return [*replies, again]


@pytest.mark.parametrize(
    ("extra", "who", "why", "lost"),
    [
        ("twice", FIRST_NODE_ID + 1, "it replied twice in this round", None),
        ("another node", 77, "a client that was not sampled", None),
        ("another round", FIRST_NODE_ID + 1, "it answers message 'message-999'", 1),
    ],
)
def test_a_reply_that_answers_nothing_of_this_round_is_dropped_and_named(
    extra: str, who: int, why: str, lost: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = FixBN(fedavg(), freeze_after=1)
    result, of_round = federation(strategy, grid=Meddling(extra), rounds=1)
    assert f"reply dropped, client {who}: " in caplog.text
    assert why in caplog.text
    kept = SerializingGrid(
        training_app(network, batches),
        CLIENTS,
        lost=lambda m: lost is not None and m.metadata.dst_node_id == FIRST_NODE_ID + lost,
    )
    assert same(of_round[1], federation(FixBN(fedavg(), freeze_after=1), grid=kept, rounds=1)[1][1])
    assert result.train_metrics_clientapp[1]["fixbn-clients"] == CLIENTS - (lost is not None)


def test_most_clients_diverging_in_calibration_is_told_as_that() -> None:
    def diverges(partition: int, server_round: int, _: nn.Module, content: RecordDict) -> None:
        if server_round > 1 and partition == 0:
            raise ConnectionError("this one is gone")
        if server_round > 1:
            record = content.array_records["arrays"]
            record["scale"] = Array(np.asarray(np.nan, np.float32))

    with pytest.raises(RoundsFailedError) as caught:
        federation(FixBN(fedavg(), freeze_after=1), on_reply=diverges)
    assert "the run diverged in calibration" in str(caught.value)
    assert "a smaller learning_rate_factor" in str(caught.value)
    with pytest.raises(RoundsFailedError) as caught:
        federation(FixBN(fedavg(), freeze_after=1.0), on_reply=diverges)
    assert "in calibration. A learning" not in str(caught.value)


class Overflowing(FedAvg):
    """Makes a model of round 2 that no float32 holds."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        if server_round == 2 and arrays is not None:
            arrays["scale"] = Array(np.asarray(np.inf, np.float32))
        return arrays, metrics


@pytest.mark.parametrize("momentum", ["local", "global"])
def test_an_average_that_is_not_finite_is_no_model(
    momentum: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = FixBN(Overflowing(fraction_evaluate=0.0), freeze_after=1, momentum=momentum)
    _, of_round = federation(strategy)
    assert (
        "Overflowing produced NaN or infinity from finite updates, first in 'scale'" in caplog.text
    )
    assert same(of_round[2], of_round[1])
    assert not same(of_round[3], of_round[2])
    assert all(np.isfinite(array).all() for array in of_round[ROUNDS].values())


class FarTooFar(FedAvgM):
    """Is given finite replies in round 2 of which its own step makes infinity."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        if server_round == 2:
            for reply in replies:
                reply.content["arrays"]["scale"] = Array(np.asarray(3e38, np.float32))
        with np.errstate(over="ignore", invalid="ignore"):
            return super().aggregate_train(server_round, replies)


def test_a_servers_momentum_that_became_infinite_is_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = FarTooFar(fraction_evaluate=0.0, server_learning_rate=2.0, server_momentum=0.9)
    _, of_round = federation(FixBN(strategy, freeze_after=1))
    assert "FarTooFar produced NaN or infinity from finite updates, first in 'scale'" in caplog.text
    assert same(of_round[2], of_round[1])
    assert not same(of_round[3], of_round[2])
    assert all(np.isfinite(array).all() for array in of_round[ROUNDS].values())
