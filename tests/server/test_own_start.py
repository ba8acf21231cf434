"""A strategy with its own ``start()``: its loop, log, files and attributes work inside FixBN."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fixbn_flwr import FixBN
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, training_app
from tests.support.small_federation import (
    CLIENTS,
    ROUNDS,
    batches,
    fedavg,
    federation,
    network,
    same,
    statistics_of,
)


class Tracker:
    """Stands for the user's tracker of experiments, which nobody can copy."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def log(self, server_round: int, metrics: MetricRecord) -> None:
        self.logged.append((server_round, dict(metrics)))

    def __reduce__(self) -> Any:
        raise TypeError("a tracker has an open connection")


class Project(FedAvg):
    """A schedule, a loop of its own, the best model, metrics as JSON, and a tracker."""

    def __init__(self, folder: Path) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.folder = folder
        self.rates: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config["lr"] = 0.1 if server_round <= 2 else 0.05
        self.rates.append(config["lr"])
        return super().configure_train(server_round, arrays, config, grid)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        self.tracker, self.best = Tracker(), -1.0
        arrays, result = initial_arrays, Result()
        for number in range(1, num_rounds + 1):
            messages = self.configure_train(number, arrays, train_config or ConfigRecord(), grid)
            replies = grid.send_and_receive(messages, timeout=timeout)
            averaged, metrics = self.aggregate_train(number, replies)
            assert averaged is not None
            assert metrics is not None
            arrays, result.arrays = averaged, averaged
            self.tracker.log(number, metrics)
            assert evaluate_fn is not None
            tested = evaluate_fn(number, arrays)
            assert tested is not None
            result.evaluate_metrics_serverapp[number] = tested
            if float(tested["round"]) > self.best:  # type: ignore[arg-type]
                self.save_best(number, arrays)
        (self.folder / "metrics.json").write_text(json.dumps(self.tracker.logged))
        return result

    def save_best(self, number: int, arrays: ArrayRecord) -> None:
        self.best = number
        path = self.folder / "best.safetensors"
        safetensors.numpy.save_file({n: a.numpy() for n, a in arrays.items()}, path)


@pytest.fixture
def expected() -> dict[int, dict[str, np.ndarray]]:
    """The models of each round with Flower's own loop."""

    class Scheduled(Project):
        start = FedAvg.start

    return federation(FixBN(Scheduled(Path()), freeze_after=2))[1]


def test_the_loop_of_the_strategy_gives_the_models_of_flowers_loop(
    expected: dict[int, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    strategy = Project(tmp_path)
    result, of_round = federation(FixBN(strategy, freeze_after=2))
    for number in range(1, ROUNDS + 1):
        assert same(of_round[number], expected[number]), number
    assert same(statistics_of(of_round[4]), statistics_of(of_round[2]))  # frozen
    assert same({n: a.numpy() for n, a in result.arrays.items()}, expected[ROUNDS])


def test_what_it_saves_is_the_whole_model_and_what_it_sets_is_its_own(
    expected: dict[int, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    strategy = Project(tmp_path)
    federation(FixBN(strategy, freeze_after=2))
    assert same(safetensors.numpy.load_file(tmp_path / "best.safetensors"), expected[ROUNDS])
    assert strategy.best == ROUNDS
    assert strategy.rates == [0.1, 0.1, 0.05, 0.05]
    logged = json.loads((tmp_path / "metrics.json").read_text())
    assert [number for number, _ in logged] == [1, 2, 3, 4]
    assert all(metrics["fixbn-clients"] == 4 for _, metrics in logged)
    assert type(strategy) is not Project  # FixBN shows it whole models
    assert isinstance(strategy, Project)


def test_a_loop_around_flowers_loop_runs_too(tmp_path: Path) -> None:
    class Around(FedAvg):
        def start(self, *args: Any, **kwargs: Any) -> Result:
            self.before = type(self).__name__
            result = super().start(*args, **kwargs)
            self.after = set(result.arrays)
            return result

    strategy = Around(fraction_evaluate=0.0)
    _, of_round = federation(FixBN(strategy, freeze_after=2))
    _, plain = federation(FixBN(fedavg(), freeze_after=2))
    assert all(same(of_round[number], plain[number]) for number in plain)
    assert (strategy.before, strategy.after) == ("Around", set(network().state_dict()))


def test_a_resumed_loop_counts_from_one_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    states: dict[int, Any] = {}

    class Kept(Project):
        def save_best(self, number: int, arrays: ArrayRecord) -> None:
            self.best = number
            states[number] = (arrays, fixbn.state())

    # Without momentum in the clients' states, which this test does not keep.
    fixbn = FixBN(Kept(tmp_path), freeze_after=2, momentum="reset")
    _, whole = federation(fixbn)
    arrays, state = states[2]
    again = FixBN(Project(tmp_path), freeze_after=2, momentum="reset")
    again.restore(state)
    _, rest = federation(again, arrays=arrays, first_round=3)
    assert all(same(rest[number], whole[number]) for number in (3, 4))


def test_stop_leaves_the_loop_with_the_result_so_far(tmp_path: Path) -> None:
    class Patient(Project):
        def save_best(self, number: int, arrays: ArrayRecord) -> None:
            if number == 3:
                fixbn.stop()

    fixbn = FixBN(Patient(tmp_path), freeze_after=2)
    result, of_round = federation(fixbn)
    assert max(of_round) == 3
    assert same({n: a.numpy() for n, a in result.arrays.items()}, of_round[3])


def test_a_start_that_goes_back_to_an_earlier_model_is_refused_with_the_remedy() -> None:
    class Best(FedAvg):
        def start(  # type: ignore[override]
            self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int, **_: Any
        ) -> None:
            arrays = initial_arrays
            for number in range(1, num_rounds + 1):
                messages = self.configure_train(number, arrays, ConfigRecord(), grid)
                new, _ = self.aggregate_train(number, grid.send_and_receive(messages))
                arrays = initial_arrays if number == 2 or new is None else new

    fixbn = FixBN(Best(fraction_evaluate=0.0), freeze_after=1)
    grid = SerializingGrid(training_app(network, batches), CLIENTS)
    with pytest.raises(ConfigError, match=r"went back to an earlier model.*keep its best model"):
        fixbn.start(grid, initial_arrays(network()), 3)


def test_a_start_without_a_timeout_runs_unless_one_is_given() -> None:
    class Shorter(FedAvg):
        def start(  # type: ignore[override]
            self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int
        ) -> Any:
            return super().start(grid, initial_arrays, num_rounds)

    fixbn = FixBN(Shorter(fraction_evaluate=0.0), freeze_after=1)
    grid = SerializingGrid(training_app(network, batches), CLIENTS)
    result = fixbn.start(grid, initial_arrays(network()), 2)
    assert set(result.arrays) == set(network().state_dict())
    with pytest.raises(TypeError, match="unexpected keyword argument 'timeout'"):
        fixbn.start(grid, initial_arrays(network()), 2, timeout=60)


def test_a_start_with_fewer_arguments_gets_those_that_are_given() -> None:
    class Short(FedAvg):
        def start(  # type: ignore[override]
            self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int, timeout: float
        ) -> Any:
            return super().start(grid, initial_arrays, num_rounds, timeout)

    fixbn = FixBN(Short(fraction_evaluate=0.0), freeze_after=1)
    grid = SerializingGrid(training_app(network, batches), CLIENTS)
    result = fixbn.start(grid, initial_arrays(network()), 2)
    assert set(result.arrays) == set(network().state_dict())
