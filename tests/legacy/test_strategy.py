"""FixBN around older strategies with real NumPyClients, without Ray (see older_generation)."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp.strategy import FedAvg as NewFedAvg
from torch import nn
from torch.optim import SGD

from fixbn_flwr import FixBN as NewFixBN
from fixbn_flwr import Phase, local_training
from fixbn_flwr.errors import (
    ConfigError,
    RoundsFailedError,
)
from fixbn_flwr.legacy.replies import select_results
from fixbn_flwr.method.averaging import Kind, kind_of
from fixbn_flwr.method.update import Update
from fixbn_flwr.server.dropped_replies import DroppedReplyLog
from fixbn_flwr.server.reply_collection import CheckedReply
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, sgd_step, training_app
from tests.support.older_federation import CLIENTS, NAMES, ROUNDS, STATISTICS, app, fedavg, fixbn
from tests.support.older_generation import Arrays, Trainer, arrays_of, load, run_older
from tests.support.small_federation import batches, network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# The two phases


def test_exploration_averages_the_statistics() -> None:
    returned: dict[int, Arrays] = {}

    def on_reply(partition: int, _: int, arrays: Arrays, __: dict[str, Any]) -> None:
        returned[partition] = [array.copy() for array in arrays]

    examples = [1, 2, 3, 4]
    of_round = run_older(
        fixbn(freeze_after=1.0), app(examples=examples, on_reply=on_reply), num_rounds=1
    )
    for place, name in enumerate(NAMES):
        own = np.stack([returned[client][place] for client in range(CLIENTS)]).astype(float)
        got = of_round[1][place]
        if kind_of(name, got.dtype) is Kind.COUNTER:
            assert np.array_equal(got, own.max(0)), name
        else:
            expected = np.tensordot(np.array(examples) / 10, own, 1)
            assert np.allclose(got, expected, rtol=1e-6, atol=1e-7), name
        assert got.dtype == returned[0][place].dtype
        assert got.shape == returned[0][place].shape


def test_statistics_are_bit_identical_after_the_freeze() -> None:
    trained_with: list[Arrays] = []

    class Watching(Trainer):
        def fit(self, parameters: Any, config: Any) -> Any:
            if config["fixbn-phase"] == "calibration":
                trained_with.append([parameters[place] for place in STATISTICS])
            return super().fit(parameters, config)

    strategy = fixbn()
    of_round = run_older(strategy, app(client=Watching), ROUNDS)
    frozen = [of_round[2][place] for place in STATISTICS]
    assert frozen[0].any()
    assert len(trained_with) == 2 * CLIENTS
    for statistics in [
        *trained_with,
        *([of_round[number][place] for place in STATISTICS] for number in (3, 4)),
        list((strategy.frozen_statistics or {}).values()),
    ]:
        assert all(np.array_equal(*pair) for pair in zip(frozen, statistics, strict=True))
    assert strategy.phase is Phase.CALIBRATION
    weight, scale = NAMES.index("norm.weight"), NAMES.index("first.weight")
    assert not np.array_equal(of_round[3][weight], of_round[4][weight])
    assert not np.array_equal(of_round[3][scale], of_round[4][scale])


def test_integers_keep_their_values_where_flowers_average_sets_them_to_zero() -> None:
    place, counter = NAMES.index("positions"), NAMES.index("norm.num_batches_tracked")
    plain = run_older(fedavg(), app(), 1)
    assert not plain[1][place].any()
    result = run_older(fixbn(freeze_after=1.0), app(), ROUNDS)
    assert np.array_equal(result[ROUNDS][place], np.arange(7))
    assert result[ROUNDS][counter] == 2 * ROUNDS
    assert result[ROUNDS][counter].dtype == np.int64


# Agreement of both generations


@pytest.mark.parametrize("momentum", ["reset", "local", "global"])
@pytest.mark.parametrize("statistics", ["mean", "pooled"])
def test_both_generations_give_the_same_bits(momentum: str, statistics: str) -> None:
    """With four clients of equal size the weights are exact, so Flower's two averages agree."""
    choices: dict[str, Any] = {
        "freeze_after": 2, "momentum": momentum, "statistics": statistics,
        "learning_rate_factor": 0.5,
    }  # fmt: skip
    older = run_older(fixbn(**choices), app(), ROUNDS, shuffle_seed=1)
    grid = SerializingGrid(training_app(network, batches), CLIENTS, shuffle_seed=2)
    strategy = NewFixBN(NewFedAvg(fraction_evaluate=0.0), **choices)
    newer = strategy.start(grid, initial_arrays(network()), ROUNDS).arrays
    for name, array in zip(NAMES, older[ROUNDS], strict=True):
        expected = newer[name].numpy()
        assert array.dtype == expected.dtype, name
        assert np.array_equal(array, expected), name


@pytest.mark.parametrize("examples", [[8] * 3, [8] * 10, [3, 5, 6, 7]])
def test_statistics_agree_where_flowers_two_averages_round_differently(examples: list[int]) -> None:
    """Statistics agree exactly in round 1, and all arrays agree up to rounding in the end."""
    clients, of_round = len(examples), {}
    older = run_older(fixbn(), app(examples=examples), ROUNDS, clients=clients)
    grid = SerializingGrid(training_app(network, batches, examples=examples), clients)
    strategy = NewFixBN(NewFedAvg(fraction_evaluate=0.0), freeze_after=2)

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        of_round[server_round] = {name: array.numpy() for name, array in arrays.items()}

    strategy.start(grid, initial_arrays(network()), ROUNDS, evaluate_fn=evaluate)
    for place, name in enumerate(NAMES):
        if place in STATISTICS:
            assert np.array_equal(older[1][place], of_round[1][name]), name
        assert np.allclose(older[ROUNDS][place], of_round[ROUNDS][name], rtol=1e-4, atol=1e-6), name


def test_clients_are_ordered_by_their_numbers() -> None:
    status, parameters = Status(Code.OK, ""), Parameters([], "")
    replies = [
        (SimpleNamespace(cid=cid), FitRes(status, parameters, 1, {"cid": cid}))
        for cid in ("10", "9", "8", "11")
    ]
    selection, accepted, _ = select_results(
        1,
        replies,  # type: ignore[arg-type]
        [],
        check=lambda _, result: CheckedReply(result, Update({}, {}, 1.0), None),
        log=DroppedReplyLog(),
    )
    assert list(selection.usable) == ["8", "9", "10", "11"]
    assert [content.metrics["cid"] for _, content in accepted] == ["8", "9", "10", "11"]


def test_the_order_of_arrival_does_not_matter() -> None:
    one, other = (
        run_older(fixbn(), app(examples=[3, 5, 6, 7]), ROUNDS, shuffle_seed=seed)[ROUNDS]
        for seed in (1, 2)
    )
    assert all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


# Momentum


@pytest.mark.parametrize("momentum", ["reset", "local", "global"])
def test_each_mode_uses_its_momentum(momentum: str) -> None:
    """With one client, its own momentum equals the average of all clients, and is not zero."""
    strategy = fixbn(fedavg(min_fit_clients=1, min_available_clients=1), momentum=momentum)
    got = run_older(strategy, app(), ROUNDS, clients=1)[ROUNDS]
    model = network()
    optimizer = SGD(model.parameters(), 0.05, 0.9)
    for server_round in range(1, ROUNDS + 1):
        if momentum == "reset":
            optimizer.state.clear()
        for batch in batches(0, server_round):
            if server_round > 2:
                step_with_frozen_statistics(model, optimizer, batch)
            else:
                sgd_step(model, optimizer, batch)
    for name, array, expected in zip(NAMES, got, arrays_of(model), strict=True):
        assert np.allclose(array, expected, rtol=1e-5, atol=1e-7), name


def step_with_frozen_statistics(model: nn.Module, optimizer: Any, batch: Any) -> None:
    images, targets = batch
    model.train()
    model.norm.eval()  # type: ignore[union-attr]
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), targets).backward()
    optimizer.step()


def test_global_momentum_is_removed_from_the_metrics() -> None:
    seen: list[dict[str, Any]] = []

    def aggregate(metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        seen.extend(own for _, own in metrics)
        return {"loss": 0.5}

    strategy = fixbn(fedavg(fit_metrics_aggregation_fn=aggregate), momentum="global")
    run_older(strategy, app(metrics={"loss": 0.5}), ROUNDS)
    assert seen == [{"loss": 0.5}] * (CLIENTS * ROUNDS)


def test_a_client_that_returns_no_momentum_fails_with_the_remedy() -> None:
    def on_reply(_: int, __: int, ___: Arrays, metrics: dict[str, Any]) -> None:
        metrics.pop("fixbn-momentum-buffers", None)

    with pytest.raises(RoundsFailedError, match=r"\*\*local\.metrics"):
        run_older(fixbn(momentum="global"), app(on_reply=on_reply), ROUNDS)


# Evaluation


def test_evaluations_receive_the_complete_model() -> None:
    on_server: list[Arrays] = []
    at_clients: list[Any] = []

    def evaluate_fn(server_round: int, arrays: Arrays, _: dict[str, Any]) -> Any:
        on_server.append(arrays)
        return 0.0, {}

    class Watching(Trainer):
        def evaluate(self, parameters: Any, config: Any) -> Any:
            at_clients.append(parameters)
            return super().evaluate(parameters, config)

    strategy = fixbn(fedavg(evaluate_fn=evaluate_fn, fraction_evaluate=1.0))
    of_round = run_older(strategy, app(client=Watching), ROUNDS)
    assert len(on_server) == ROUNDS + 1
    assert len(at_clients) == ROUNDS * CLIENTS
    model = network()
    for arrays in (on_server[-1], at_clients[-1]):
        load(model, [np.array(array) for array in arrays])
        assert all(np.array_equal(*pair) for pair in zip(arrays, of_round[ROUNDS], strict=True))


def test_the_initial_model_is_requested_from_a_client_if_there_is_none() -> None:
    of_round = run_older(fixbn(fedavg(initial_parameters=None)), app(), 1)
    assert all(
        np.array_equal(*pair) for pair in zip(of_round[0], arrays_of(network()), strict=True)
    )
    assert of_round[1][STATISTICS[0]].any()


def test_secure_aggregation_is_refused_in_the_first_round() -> None:
    grid = SerializingGrid(app(mods=[secaggplus_mod]), CLIENTS)
    context = LegacyContext(
        context=Context(1, 1, {}, RecordDict(), {}),
        config=ServerConfig(num_rounds=ROUNDS),
        strategy=fixbn(),
    )
    workflow = DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(3, 2))
    with pytest.raises(RoundsFailedError, match="does not work with FixBN: use DefaultWorkflow"):
        workflow(grid, context)
    assert context.history.metrics_distributed_fit == {}


def test_a_client_in_secure_aggregation_fails_with_the_reason() -> None:
    model = network()
    context = Context(1, 1, {}, RecordDict({"secaggplus_state": ConfigRecord()}), {})
    config = {
        "server-round": 1, "fixbn-phase": "exploration", "fixbn-momentum": "local",
        "fixbn-learning-rate-factor": 1.0,
    }  # fmt: skip
    optimizer = SGD(model.parameters(), 0.1)
    with (
        pytest.raises(ConfigError, match="clips every value to a fixed range"),
        local_training(model, optimizer, config, context),
    ):
        pass


def test_freeze_after_may_be_a_fraction_of_the_rounds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flwr.fixbn")
    run_older(fixbn(freeze_after=0.25), app(), ROUNDS)
    assert "round 1 is exploration" in caplog.text
    assert "round 2 is calibration" in caplog.text


def test_a_second_run_starts_without_state() -> None:
    phases: list[str] = []

    class Watching(Trainer):
        def fit(self, parameters: Any, config: Any) -> Any:
            sent = "with" if "fixbn-momentum-buffers" in config else "without"
            phases.append(f"{config['fixbn-phase']} {sent} buffers")
            return super().fit(parameters, config)

    strategy = fixbn(fedavg(initial_parameters=None), momentum="global")
    for _ in range(2):
        phases.clear()
        run_older(strategy, app(client=Watching), ROUNDS)
        assert phases[:CLIENTS] == ["exploration without buffers"] * CLIENTS
        assert phases[-1] == "calibration with buffers"


def test_a_model_that_a_strategy_loads_itself_is_trained() -> None:
    class Resuming(FedAvg):
        def initialize_parameters(self, client_manager: Any) -> Any:
            super().initialize_parameters(client_manager)
            return ndarrays_to_parameters([array * 0 + 7 for array in arrays_of(network())])

    initial = ndarrays_to_parameters(arrays_of(network()))
    of_round = run_older(fixbn(Resuming(initial_parameters=initial)), app(), 1)
    assert all((array == 7).all() for array in of_round[0])


def test_a_round_without_replies_leaves_the_model_unchanged() -> None:
    class Stubborn(FedAvg):
        """Returns a model in every round, if necessary the last one."""

        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            parameters, metrics = super().aggregate_fit(server_round, results, failures)
            self.last = parameters or self.last
            return self.last, metrics

    class FailsOnce(Trainer):
        def fit(self, parameters: Any, config: Any) -> Any:
            if config["server-round"] == 2:
                raise FileNotFoundError("no such folder: /data")
            return super().fit(parameters, config)

    initial = ndarrays_to_parameters(arrays_of(network()))
    strategy = fixbn(Stubborn(initial_parameters=initial))
    of_round = run_older(strategy, app(client=FailsOnce), 3)
    assert all(np.array_equal(*pair) for pair in zip(of_round[1], of_round[2], strict=True))
    assert not np.array_equal(of_round[2][0], of_round[3][0])


def test_the_helper_is_deterministic() -> None:
    """Two runs of the same federation by the helper are identical."""
    one, other = (run_older(fixbn(), app(), 2)[2] for _ in range(2))
    assert torch.equal(torch.from_numpy(one[0]), torch.from_numpy(other[0]))
