"""Strategies and clients of real projects work inside FixBN as they do in Flower."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    Krum,
    Strategy,
)
from torch import nn

from fixbn_flwr import FixBN
from fixbn_flwr.errors import ConfigError, RoundsFailedError
from fixbn_flwr.testing import FIRST_NODE_ID, SerializingGrid
from tests.support.clients import initial_arrays, partition_of, training_app
from tests.support.small_federation import (
    CLIENTS,
    ROUNDS,
    batches,
    fedavg,
    federation,
    network,
    same,
)

NAMES = list(network().state_dict())


def recording_app(configs: list[dict[str, Any]]) -> ClientApp:
    """Return an app whose first client records the config of each training message."""
    app, trainer = ClientApp(), training_app(network, batches)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if partition_of(context) == 0:
            (config,) = message.content.config_records.values()
            configs.append(dict(config))
        return trainer(message, context)

    return app


# The config


class Halving(FedAvg):
    """Halves the learning rate once, as Flower's tutorials do."""

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
        if server_round == 3:
            config["lr"] *= 0.5
        return super().configure_train(server_round, arrays, config, grid)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_change_of_the_config_persists(wrap: bool) -> None:
    configs: list[dict[str, Any]] = []
    strategy: Strategy = Halving(fraction_evaluate=0.0)
    strategy = FixBN(strategy, freeze_after=2) if wrap else strategy
    given = ConfigRecord({"lr": 0.1})
    grid = SerializingGrid(recording_app(configs), CLIENTS)
    federation(strategy, grid=grid, rounds=5, train_config=given)
    assert [config["lr"] for config in configs] == [0.1, 0.1, 0.05, 0.05, 0.05]
    assert dict(given) == {"lr": 0.05, "server-round": 5}


class OwnMessages(FedAvg):
    """Sends each client a different config, in its own records and messages."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        for node_id in grid.get_node_ids():
            own = ConfigRecord({"lr": 0.1 * (node_id - FIRST_NODE_ID + 1)})
            yield Message(
                RecordDict({"arrays": arrays, "config": own}),
                dst_node_id=node_id,
                message_type="train",
            )


def test_a_strategys_own_messages_contain_fixbns_config() -> None:
    configs: list[dict[str, Any]] = []
    strategy = FixBN(OwnMessages(fraction_evaluate=0.0), freeze_after=2)
    _, of_round = federation(strategy, grid=SerializingGrid(recording_app(configs), CLIENTS))
    assert [config["lr"] for config in configs] == [0.1] * ROUNDS
    phases = [config["fixbn-phase"] for config in configs]
    assert phases == ["exploration"] * 2 + ["calibration"] * 2
    assert np.array_equal(of_round[4]["norm.running_mean"], of_round[2]["norm.running_mean"])


# The model


class Saving(FedAvg):
    """Saves every model that Flower's aggregation returns, as in Flower's how-to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(fraction_evaluate=0.0, **options)
        self.saved: list[dict[str, np.ndarray]] = []
        self.replies: list[list[str]] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        self.replies += [list(reply.content["arrays"]) for reply in replies]
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self.saved.append({name: array.numpy().copy() for name, array in arrays.items()})
        return arrays, metrics

    def set_save_path(self, path: str) -> str:
        return f"saved in {path}"


@pytest.mark.parametrize("momentum", ["local", "global"])
@pytest.mark.parametrize("statistics", ["mean", "pooled"])
def test_a_strategy_saves_the_complete_model(momentum: Any, statistics: Any) -> None:
    strategy = Saving()
    fixbn = FixBN(strategy, freeze_after=2, momentum=momentum, statistics=statistics)
    _, of_round = federation(fixbn)
    for server_round, saved in enumerate(strategy.saved, start=1):
        assert same(saved, of_round[server_round])
    assert strategy.replies == [NAMES] * CLIENTS * ROUNDS


class SavingMedian(Saving, FedMedian):
    """A subclass of a defending strategy."""


class SavingKrum(Saving, Krum):
    """A subclass of another defending strategy."""


@pytest.mark.parametrize("momentum", ["local", "global"])
@pytest.mark.parametrize("make", [SavingMedian, SavingKrum])
def test_a_defending_strategy_saves_the_complete_model(make: type[Saving], momentum: Any) -> None:
    strategy = make()
    _, of_round = federation(FixBN(strategy, freeze_after=2, momentum=momentum))
    assert all(same(saved, of_round[r]) for r, saved in enumerate(strategy.saved, start=1))


def test_inside_differential_privacy_a_strategy_saves_the_complete_model_without_noise() -> None:
    strategy = Saving()
    private = DifferentialPrivacyServerSideFixedClipping(strategy, 0.5, 1.0, CLIENTS)
    _, of_round = federation(FixBN(private, freeze_after=2))
    for server_round, saved in enumerate(strategy.saved, start=1):
        assert list(saved) == NAMES
        assert not np.array_equal(saved["first.weight"], of_round[server_round]["first.weight"])
        assert np.array_equal(saved["norm.running_var"], of_round[server_round]["norm.running_var"])


def test_saving_does_not_change_the_run() -> None:
    _, plain = federation(FixBN(fedavg(), freeze_after=2))
    _, saving = federation(FixBN(Saving(), freeze_after=2))
    assert all(same(plain[r], saving[r]) for r in plain)


class Choosing(FedAvg):
    """Excludes the first client from the average."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        return super().aggregate_train(server_round, list(replies)[1:])


def test_replies_that_a_strategy_excludes_do_not_affect_the_statistics() -> None:
    lost = SerializingGrid(
        training_app(network, batches),
        CLIENTS,
        lost=lambda message: message.metadata.dst_node_id == FIRST_NODE_ID,
    )
    _, without = federation(FixBN(fedavg(), freeze_after=2), grid=lost)
    _, chosen = federation(FixBN(Choosing(fraction_evaluate=0.0), freeze_after=2))
    for server_round in (1, 2, 3):
        statistics = [n for n in NAMES if "running" in n]
        assert all(
            np.array_equal(chosen[server_round][n], without[server_round][n]) for n in statistics
        )


class OwnAverage(Strategy):
    """A strategy with its own average, which records the names of its arrays."""

    def __init__(self) -> None:
        self.saved: list[list[str]] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        content = RecordDict({"arrays": arrays, "config": config})
        return [Message(content, node_id, "train") for node_id in grid.get_node_ids()]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        records = [reply.content["arrays"] for reply in replies]
        mean = {
            name: Array(np.asarray(np.mean([r[name].numpy() for r in records], axis=0)))
            for name in records[0]
        }
        self.saved.append(list(mean))
        return ArrayRecord(mean), None

    def configure_evaluate(self, *_: Any) -> Iterable[Message]:
        return []

    def aggregate_evaluate(self, *_: Any) -> None:
        return None

    def summary(self) -> None:
        """Log nothing."""


def test_a_custom_strategy_receives_complete_models_and_fixbn_averages_the_statistics() -> None:
    strategy = OwnAverage()
    _, own = federation(FixBN(strategy, freeze_after=2))
    _, plain = federation(FixBN(fedavg(), freeze_after=2))
    assert strategy.saved == [NAMES] * ROUNDS
    assert np.array_equal(own[4]["norm.running_mean"], own[2]["norm.running_mean"])
    assert np.array_equal(own[1]["norm.running_var"], plain[1]["norm.running_var"])
    assert np.allclose(own[1]["first.weight"], plain[1]["first.weight"], atol=1e-6)


def test_the_inner_strategys_methods_and_attributes_are_accessible() -> None:
    strategy = FixBN(Saving(), freeze_after=2)
    assert strategy.set_save_path("here") == "saved in here"
    assert strategy.weighted_by_key == "num-examples"
    with pytest.raises(
        AttributeError, match=r"nor Saving inside it \(\.strategy\) has .* 'nothing'"
    ):
        _ = strategy.nothing


def test_a_strategy_can_be_used_in_a_second_fixbn() -> None:
    strategy = Saving()
    federation(FixBN(strategy, freeze_after=2), rounds=1)
    _, of_round = federation(FixBN(strategy, freeze_after=2), rounds=1)
    assert same(strategy.saved[1], of_round[1])


# Replies


def changed(change: Any, client: int = 1) -> Any:
    def on_reply(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
        if partition == client:
            change(content)

    return on_reply


def renamed(prefix: str) -> Any:
    def change(content: RecordDict) -> None:
        record = content.array_records["arrays"]
        content["arrays"] = ArrayRecord({f"{prefix}{n}": a for n, a in record.items()})

    return change


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_a_prefix_that_is_the_only_difference_is_accepted(prefix: str) -> None:
    _, plain = federation(FixBN(fedavg(), freeze_after=1))
    _, prefixed = federation(FixBN(fedavg(), freeze_after=1), on_reply=changed(renamed(prefix)))
    assert all(same(plain[r], prefixed[r]) for r in plain)


def test_another_prefix_is_refused() -> None:
    def change(content: RecordDict) -> None:
        renamed("net.")(content)

    def on_reply(partition: int, *rest: Any) -> None:
        change(rest[-1])

    with pytest.raises(RoundsFailedError, match=r"unknown \['net\.first\.bias'"):
        federation(FixBN(fedavg(), freeze_after=1), on_reply=on_reply)


class Scaffold(FedAvg):
    """Exchanges control variates in a second record."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.variates: list[float] = []

    def configure_train(self, *arguments: Any) -> Any:
        for message in super().configure_train(*arguments):
            parameters = {n: a for n, a in message.content["arrays"].items() if n in PARAMETERS}
            message.content["variates"] = ArrayRecord(parameters)
            yield message

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        for reply in replies:
            self.variates.append(float(reply.content["variates"]["scale"].numpy()))
            del reply.content["variates"]
        return super().aggregate_train(server_round, replies)


PARAMETERS = [name for name, _ in network().named_parameters()]


def test_a_second_record_of_arrays_passes_in_both_directions() -> None:
    received: list[list[str]] = []
    app, trainer = ClientApp(), training_app(network, batches)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        received.append(list(message.content["variates"]))
        reply = trainer(message, context)
        variates = {n: a for n, a in reply.content["arrays"].items() if n in PARAMETERS}
        variates["scale"] = Array(np.asarray(np.float32(partition_of(context))))
        reply.content["variates"] = ArrayRecord(variates)
        return reply

    strategy = Scaffold()
    _, plain = federation(FixBN(fedavg(), freeze_after=1), rounds=2)
    fixbn = FixBN(strategy, freeze_after=1)
    _, of_round = federation(fixbn, grid=SerializingGrid(app, CLIENTS), rounds=2)
    assert strategy.variates == [0.0, 1.0, 2.0, 3.0] * 2
    assert received == [PARAMETERS] * CLIENTS * 2
    assert same(of_round[2], plain[2])


def test_the_limit_of_extra_bytes_can_be_set() -> None:
    def change(content: RecordDict) -> None:
        content["config"] = ConfigRecord({"large": b"x" * 2**21})

    on_reply = changed(change, client=0)

    def all_clients(partition: int, *rest: Any) -> None:
        change(rest[-1])

    with pytest.raises(RoundsFailedError, match=r"max_extra_bytes=20971\d\d"):
        federation(FixBN(fedavg(), freeze_after=1), on_reply=all_clients)
    result, _ = federation(
        FixBN(fedavg(), freeze_after=1, max_extra_bytes=2**22), on_reply=all_clients, rounds=1
    )
    assert result.train_metrics_clientapp[1]["fixbn-clients"] == CLIENTS
    assert on_reply is not None


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_another_floating_type_is_converted_with_one_message(
    dtype: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def change(content: RecordDict) -> None:
        record = content.array_records["arrays"]
        for name in PARAMETERS:
            record[name] = Array(record[name].numpy().astype(dtype))

    _, of_round = federation(FixBN(fedavg(), freeze_after=1), on_reply=changed(change))
    assert {n: a.dtype for n, a in of_round[4].items()} == {
        n: a.dtype for n, a in of_round[0].items()
    }
    converted = [r.getMessage() for r in caplog.records if "converted" in r.getMessage()]
    name = np.dtype(dtype).name
    assert converted == [f"client {FIRST_NODE_ID + 1} returned {name} for float32: converted"]


def test_a_client_without_examples_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def change(content: RecordDict) -> None:
        content.metric_records["metrics"]["num-examples"] = 0

    result, _ = federation(FixBN(fedavg(), freeze_after=1), on_reply=changed(change))
    lines = [r.getMessage() for r in caplog.records if str(FIRST_NODE_ID + 1) in r.getMessage()]
    assert lines == [f"client {FIRST_NODE_ID + 1} has no examples: left out of the average"]
    assert result.train_metrics_clientapp[1]["fixbn-clients"] == CLIENTS - 1


def test_a_batch_of_one_fails_with_the_remedy() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        nn.BatchNorm1d(2).train()(initial_arrays(nn.Linear(2, 1)).to_torch_state_dict()["weight"])
        raise AssertionError("batch normalization trains with one example")

    with pytest.raises(RoundsFailedError, match="drop_last=True in the DataLoader"):
        federation(FixBN(fedavg(), freeze_after=1), grid=SerializingGrid(app, CLIENTS))


# The end of a run


def test_stop_ends_the_run_after_the_current_round() -> None:
    strategy = FixBN(FedAdam(fraction_evaluate=0.0), freeze_after=1)
    grid = SerializingGrid(training_app(network, batches), CLIENTS)

    def evaluate(server_round: int, _: ArrayRecord) -> MetricRecord:
        if server_round == 2:
            strategy.stop()
        return MetricRecord({"round": server_round})

    result = strategy.start(grid, initial_arrays(network()), ROUNDS, evaluate_fn=evaluate)
    _, uninterrupted = federation(FixBN(FedAdam(fraction_evaluate=0.0), freeze_after=1))
    assert list(result.train_metrics_clientapp) == [1, 2]
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 2]
    assert same({n: a.numpy() for n, a in result.arrays.items()}, uninterrupted[2])
    second = strategy.start(grid, initial_arrays(network()), 1)
    assert list(second.train_metrics_clientapp) == [1]


# FixBN with freeze_after=1.0 changes nothing


@pytest.mark.parametrize("make", [fedavg, Saving, Scaffold, lambda: Halving(fraction_evaluate=0.0)])
def test_a_run_that_never_freezes_has_flowers_messages_and_metrics(make: Any) -> None:
    def run(wrap: bool) -> tuple[list[dict[str, Any]], dict[int, Any]]:
        seen: list[dict[str, Any]] = []
        app, trainer = ClientApp(), training_app(network, batches)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            content = message.content
            (config,) = content.config_records.values()
            own = {key: value for key, value in config.items() if not key.startswith("fixbn")}
            arrays = {key: list(record) for key, record in content.array_records.items()}
            seen.append({"config": own, "arrays": arrays, "node": message.metadata.dst_node_id})
            reply = trainer(message, context)
            if "variates" in content:
                reply.content["variates"] = content["variates"]
            return reply

        strategy = make()
        strategy = FixBN(strategy, freeze_after=1.0) if wrap else strategy
        config = ConfigRecord({"lr": 0.1})
        grid = SerializingGrid(app, CLIENTS)
        result = strategy.start(grid, initial_arrays(network()), 3, train_config=config)
        metrics = {
            server_round: {k: v for k, v in record.items() if not k.startswith("fixbn")}
            for server_round, record in result.train_metrics_clientapp.items()
        }
        return sorted(seen, key=lambda s: (s["config"]["server-round"], s["node"])), metrics

    assert run(True) == run(False)


class Waiting(FedAvg):
    """Makes a model in every second round, as a strategy that waits for more updates."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return (None if server_round % 2 else arrays), metrics


class Refusing(Waiting):
    """A user's class around code of Flower's that makes no model, whatever the reason."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        return super().aggregate_train(server_round, [])


def test_a_strategy_may_keep_the_model_of_the_round_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, of_round = federation(FixBN(Waiting(fraction_evaluate=0.0), freeze_after=2))
    assert same(of_round[0], of_round[1])
    assert same(of_round[2], of_round[3])
    assert not same(of_round[1], of_round[2])
    kept = "round 1: Waiting made no model from 4 usable replies (if it should have, its"
    assert kept in caplog.text


def test_a_strategy_in_which_flowers_code_makes_no_model_stops_the_run() -> None:
    with pytest.raises(RoundsFailedError, match=r"Refusing made no model from 4 usable .*see"):
        federation(FixBN(Refusing(fraction_evaluate=0.0), freeze_after=2))


class Partial(FedAvg):
    """Returns a part of the model only."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        return ArrayRecord({n: a for n, a in arrays.items() if "bias" not in n}), metrics


def test_a_partial_model_is_refused_with_the_name_that_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"no 'first\.bias' \(\d of \d+ arrays are missing\)"):
        federation(FixBN(Partial(fraction_evaluate=0.0), freeze_after=2))
