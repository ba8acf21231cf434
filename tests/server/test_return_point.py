"""A run that falls apart after the switch goes back to the end of round T*: all of its state."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedYogi, Strategy
from torch import nn

from fixbn_flwr import FixBN, Phase
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.persistence.checkpoints import Checkpoints
from fixbn_flwr.server.inner_strategy_state import attributes_of, copied, put_back
from fixbn_flwr.server.resumption import Resumption
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, training_app
from tests.support.small_federation import CLIENTS, batches, network, same, statistics_of

T = 2
Fault = Callable[[RecordDict], None]


def absurd(content: RecordDict) -> None:
    """Turn a reply into that of a client whose training has exploded."""
    arrays = content.array_records["arrays"]
    for name, array in arrays.items():
        if "running" not in name and array.dtype == "float32":
            arrays[name] = type(array)(np.asarray(array.numpy() * np.float32(1e3)))
    content.metric_records["metrics"]["train-loss"] = 1e6


def not_a_number(content: RecordDict) -> None:
    record = content.array_records["arrays"]
    record["first.weight"] = type(record["first.weight"])(np.full((5, 6), np.nan, np.float32))


def without_loss(content: RecordDict) -> None:
    """Turn a reply into that of a client whose loader has no batch."""
    content.metric_records["metrics"]["train-loss"] = math.nan


def run(
    strategy: FixBN,
    rounds: int,
    *,
    fail_in: Sequence[int] = (),
    fault: Fault = absurd,
    run_config: dict[str, Any] | None = None,
    checkpoints: Checkpoints | None = None,
    stop_after: int | None = None,
    run_id: int = 1,
    **start: Any,
) -> tuple[Any, dict[int, dict[str, np.ndarray]]]:
    """Run a federation with the same batches in every round; clients fail in some rounds."""

    def on_reply(_: int, server_round: int, __: nn.Module, content: RecordDict) -> None:
        content.metric_records["metrics"]["train-loss"] = 1.0
        if server_round in fail_in:
            fault(content)

    app = training_app(network, lambda partition, _: batches(partition, 1), on_reply=on_reply)
    grid = SerializingGrid(app, CLIENTS, run_config=run_config, run_id=run_id)
    models: dict[int, dict[str, np.ndarray]] = {}

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        models[server_round] = {name: array.numpy() for name, array in arrays.items()}
        if checkpoints and server_round:
            checkpoints.save(server_round, {"model": arrays, "strategy": strategy.state()})
            strategy.checkpoints = checkpoints.rounds()
        if server_round == stop_after:
            raise KeyboardInterrupt
        return None

    arrays = start.pop("arrays", initial_arrays(network()))
    result = strategy.start(grid, arrays, rounds, evaluate_fn=evaluate, **start)
    return result, models


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(fraction_evaluate=0.0),
    "FedAvgM": lambda: FedAvgM(fraction_evaluate=0.0, server_momentum=0.9),
    "FedYogi": lambda: FedYogi(fraction_evaluate=0.0),
}


def fixbn(strategy: str = "FedAvg", **options: Any) -> FixBN:
    return FixBN(STRATEGIES[strategy](), **{"freeze_after": T, **options})


@pytest.mark.parametrize("place", ["state", "files"])
@pytest.mark.parametrize("momentum", ["reset", "local", "global"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_after_going_back_a_run_is_the_one_that_never_failed(
    strategy: str, momentum: str, place: str, tmp_path: Path
) -> None:
    """Model, server optimizer and momentum are those of round T*; only the rate differs."""
    config = {"state-dir": str(tmp_path)} if place == "files" else None
    unguarded = fixbn(strategy, momentum=momentum, learning_rate_factor=0.3, guard=False)
    expected, _ = run(unguarded, 5, run_config=config)
    guarded = fixbn(strategy, momentum=momentum)
    other = {"state-dir": str(tmp_path / "other")} if place == "files" else None
    result, models = run(guarded, 7, fail_in=(4,), run_config=other)
    assert same(models[4], models[T])
    # Rounds 3 and 4 do not count: rounds 5 to 7 are rounds 3 to 5 of the run that never failed.
    assert same(
        {name: array.numpy() for name, array in result.arrays.items()},
        {name: array.numpy() for name, array in expected.arrays.items()},
    )


@pytest.mark.parametrize("fault", [absurd, not_a_number])
def test_each_try_has_a_smaller_rate_and_after_three_the_run_thaws(
    fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = fixbn(learning_rate_factor=0.5)
    factors: dict[int, float] = {}
    phases: dict[int, Phase] = {}
    configure = strategy.configure_train

    def watched(server_round: int, *arguments: Any) -> list[Message]:
        messages = list(configure(server_round, *arguments))
        config = messages[0].content.config_records["config"]
        factors[server_round] = float(str(config["fixbn-learning-rate-factor"]))
        phases[server_round] = Phase(config["fixbn-phase"])
        return messages

    strategy.configure_train = watched  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING, "flwr.fixbn"):
        result, models = run(strategy, 9, fail_in=(3, 4, 5, 6), fault=fault)
    assert factors == {
        1: 1.0, 2: 1.0, 3: 0.5, 4: pytest.approx(0.15), 5: pytest.approx(0.045),
        6: pytest.approx(0.0135), 7: 1.0, 8: 1.0, 9: 1.0,
    }  # fmt: skip
    assert [phases[r] for r in (2, 3, 6, 7, 9)] == [
        Phase.EXPLORATION, Phase.CALIBRATION, Phase.CALIBRATION, Phase.EXPLORATION,
        Phase.EXPLORATION,
    ]  # fmt: skip
    assert all(same(models[r], models[T]) for r in (3, 4, 5, 6))
    assert not same(statistics_of(models[9]), statistics_of(models[T]))
    assert strategy.frozen_statistics is None
    said = [r.getMessage() for r in caplog.records if "falls apart" in r.getMessage()]
    assert len(said) == 4
    assert said[0].endswith("It goes back to the end of round 2: try 1 of 3 begins, with 0.3 "
                            "times the rate")  # fmt: skip
    assert said[3].endswith("the run goes on without freezing")
    retries = [result.train_metrics_clientapp[r].get("fixbn-retries", 0) for r in range(1, 10)]
    assert retries == [0, 0, 1, 2, 3, 3, 3, 3, 3]


def test_statistics_stay_frozen_through_a_retry() -> None:
    _, models = run(fixbn(), 7, fail_in=(3, 5))
    assert all(same(statistics_of(models[r]), statistics_of(models[T])) for r in range(3, 8))
    assert not np.array_equal(models[7]["first.weight"], models[T]["first.weight"])


def test_without_the_guard_a_run_that_falls_apart_goes_on() -> None:
    _, models = run(fixbn(guard=False), 4, fail_in=(3,))
    assert np.abs(models[4]["first.weight"]).max() > 10


def test_a_failure_after_the_watch_is_left_alone() -> None:
    _, models = run(fixbn(), 14, fail_in=(13,))
    assert np.abs(models[13]["first.weight"]).max() > 10
    assert not same(models[13], models[T])


@pytest.mark.parametrize("fault", [absurd, without_loss])
def test_one_client_alone_cannot_turn_a_run_back(fault: Fault) -> None:
    calls = []

    def one_only(content: RecordDict) -> None:
        calls.append(1)
        if len(calls) % CLIENTS == 1:
            fault(content)

    result, models = run(fixbn(), 3, fail_in=(3,), fault=one_only)
    assert "fixbn-retries" not in result.train_metrics_clientapp[3]
    assert not same(models[3], models[T])


def test_most_clients_without_a_finite_loss_turn_a_run_back() -> None:
    calls = []

    def three_of_four(content: RecordDict) -> None:
        calls.append(1)
        if len(calls) % CLIENTS:
            without_loss(content)

    result, models = run(fixbn(), 3, fail_in=(3,), fault=three_of_four)
    assert result.train_metrics_clientapp[3]["fixbn-retries"] == 1
    assert same(models[3], models[T])


def test_clients_keep_a_second_momentum_only_while_the_run_may_go_back() -> None:
    kept: dict[int, set[str]] = {}

    def on_reply(partition: int, server_round: int, *_: object) -> None:
        if partition == 0:
            record = grid.contexts[grid_node].state.config_records.get("fixbn-momentum", {})
            kept[server_round] = set(record)

    app = training_app(network, batches, on_reply=on_reply)
    grid = SerializingGrid(app, CLIENTS)
    grid_node = next(iter(grid.get_node_ids()))
    fixbn().start(grid, initial_arrays(network()), 15)
    one, two = {"fixbn-momentum"}, {"fixbn-momentum", "fixbn-kept-momentum"}
    # What a client has when it begins the round: of round T* and the last one, until round 12.
    assert [kept[r] for r in (2, 3, 4, 5, 12, 13, 14)] == [one, one, two, two, two, two, one]


@pytest.mark.parametrize("momentum", ["local", "global"])
@pytest.mark.parametrize("stop", [3, 4, 5])
@pytest.mark.parametrize("strategy", ["FedAvg", "FedYogi"])
def test_a_run_resumes_in_the_middle_of_a_retry_with_the_same_bits(
    strategy: str, stop: int, momentum: str, tmp_path: Path
) -> None:
    faults: dict[str, Any] = {"fail_in": (4, 6)}
    whole, _ = run(
        fixbn(strategy, momentum=momentum),
        8,
        run_config={"state-dir": str(tmp_path / "w")},
        **faults,
    )
    config = {"state-dir": str(tmp_path / "state")}
    checkpoints = Checkpoints(tmp_path / "c", keep=3)
    with pytest.raises(KeyboardInterrupt):
        run(
            fixbn(strategy, momentum=momentum), 8, run_config=config, checkpoints=checkpoints,
            stop_after=stop, **faults,
        )  # fmt: skip
    done, tree = checkpoints.newest()
    assert done == stop
    again = fixbn(strategy, momentum=momentum)
    again.restore(tree["strategy"])
    again.checkpoints = checkpoints.rounds()
    resumed, _ = run(
        again, 8, run_config=config, run_id=2, arrays=tree["model"], first_round=done + 1, **faults
    )  # fmt: skip
    assert same(
        {name: array.numpy() for name, array in resumed.arrays.items()},
        {name: array.numpy() for name, array in whole.arrays.items()},
    )


class Scaffold(FedAvg):
    """Keeps state of kinds that no checkpoint can hold."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.control: dict[int, float] = {}
        self.tensor: torch.Tensor | None = None
        self.accountant: object = None

    def learn(self, server_round: int) -> None:
        self.control[1000] = float(server_round)
        self.tensor = torch.full((2,), float(server_round)) if self.tensor is None else self.tensor
        self.tensor.fill_(server_round)
        self.accountant = object()


def test_state_that_no_checkpoint_can_hold_goes_back_too() -> None:
    strategy = Scaffold()
    server = ServerState(1, "local", "mean", 1.0)
    server.start(10, list(network().state_dict()))
    resumption = Resumption([strategy])
    resumption.begin(1, 0, server)
    strategy.learn(1)
    accountant = strategy.accountant
    resumption.return_point.keep(2, initial_arrays(network()), server)
    for _ in range(2):
        strategy.learn(2)
        resumption.return_point.go_back(server)
        assert strategy.control == {1000: 1.0}
        assert strategy.tensor is not None
        assert strategy.tensor.tolist() == [1.0, 1.0]
        assert strategy.accountant is accountant
    kept = resumption.state(server)["return_point"]
    assert kept["strategy"] == [{}]


def test_a_record_that_is_changed_in_place_goes_back() -> None:
    """A strategy may average its models into a record of its own."""
    strategy = Scaffold()
    average = initial_arrays(network())
    strategy.average, strategy.all = average, [average, {1: average}]  # type: ignore[attr-defined]
    kept = copied(attributes_of([strategy]))
    before = {name: array.numpy() for name, array in average.items()}
    for name, array in before.items():
        average[name] = Array(np.asarray(array + 1))
    put_back([strategy], kept)
    records = [strategy.average, strategy.all[0], strategy.all[1][1]]  # type: ignore[attr-defined]
    for record in records:
        assert same({name: array.numpy() for name, array in record.items()}, before)


def test_it_goes_back_after_a_resume_too() -> None:
    first, names = Scaffold(), list(network().state_dict())
    server = ServerState(1, "local", "mean", 1.0)
    server.start(10, names)
    before = Resumption([first])
    before.begin(1, 0, server)
    before.return_point.keep(2, initial_arrays(network()), server)
    second = Scaffold()
    second.control[1000] = 1.0
    after = Resumption([second])
    after.restore({**before.state(server), "model": None})
    again = ServerState(1, "local", "mean", 1.0)
    again.start(10, names)
    after.begin(2, 1, again)
    second.control[1000] = 5.0
    after.return_point.go_back(again)
    assert second.control == {1000: 1.0}


def test_a_dictionary_that_cannot_be_copied_is_kept_as_it_is() -> None:
    class Locked(dict[str, float]):
        def __init__(self) -> None:
            super().__init__(a=1.0)
            self.lock = threading.Lock()

    strategy = Scaffold()
    strategy.locked = Locked()  # type: ignore[attr-defined]
    (kept,) = copied(attributes_of([strategy]))
    assert kept["locked"] is strategy.locked  # type: ignore[attr-defined]
