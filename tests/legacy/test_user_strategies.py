"""Older strategies and clients of real projects work inside FixBN as they do in Flower."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAvg, FedMedian
from torch import nn

from tests.support.older_federation import CLIENTS, NAMES, ROUNDS, fedavg, fixbn
from tests.support.older_generation import Trainer, arrays_of, numpy_app, run_older
from tests.support.small_federation import batches, network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Saving(FedAvg):
    """Loads every aggregated model into the network and saves it, as in Flower's how-to."""

    def __init__(self, **options: Any) -> None:
        super().__init__(fraction_evaluate=0.0, **options)
        self.saved: list[list[np.ndarray]] = []

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        arrays = parameters_to_ndarrays(parameters)
        state = dict(zip(network().state_dict(), map(torch.tensor, arrays), strict=True))
        network().load_state_dict(state, strict=True)
        self.saved.append(arrays)
        return parameters, metrics


class SavingMedian(Saving, FedMedian):
    """A subclass of a defending strategy."""


def app(**choices: Any) -> Any:
    return numpy_app(network, batches, **choices)


@pytest.mark.parametrize("momentum", ["local", "global"])
@pytest.mark.parametrize("make", [Saving, SavingMedian])
def test_a_strategy_saves_the_complete_model(make: type[Saving], momentum: Any) -> None:
    strategy = make(initial_parameters=fedavg().initial_parameters)
    of_round = run_older(fixbn(strategy, momentum=momentum), app(), ROUNDS)
    assert len(strategy.saved) == ROUNDS
    for server_round, saved in enumerate(strategy.saved, start=1):
        assert all(
            np.array_equal(one, other)
            for one, other in zip(saved, of_round[server_round], strict=True)
        )


class WithoutCounter(nn.Module):
    """Batch normalization written by hand, without ``num_batches_tracked``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training
        )


class OwnMedian(FedMedian):
    """Sees as many arrays from FixBN as a whole model without counters has."""


def test_a_subclass_of_a_defending_strategy_is_right_without_counters() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), WithoutCounter(5), nn.ReLU(), nn.Linear(5, 3))

    def run(make: type[FedMedian]) -> list[np.ndarray]:
        initial = ndarrays_to_parameters(arrays_of(build()))
        strategy = make(initial_parameters=initial, fraction_evaluate=0.0)
        fixed = fixbn(strategy, parameter_names=list(build().state_dict()))
        return run_older(fixed, numpy_app(build, batches), 3)[3]

    assert all(map(np.array_equal, run(OwnMedian), run(FedMedian)))


def test_saving_does_not_change_the_run() -> None:
    plain = run_older(fixbn(), app(), ROUNDS)
    saving = run_older(fixbn(Saving(initial_parameters=fedavg().initial_parameters)), app(), ROUNDS)
    for server_round in range(ROUNDS + 1):
        assert all(map(np.array_equal, plain[server_round], saving[server_round]))


class Weighting(FedAvg):
    """Counts the last client more than its examples."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        results[-1][1].num_examples = 1000
        return super().aggregate_fit(server_round, results, failures)


@pytest.mark.parametrize("momentum", ["local", "global"])
def test_statistics_and_momentum_have_the_weights_that_a_strategy_sets(momentum: Any) -> None:
    strategy = Weighting(initial_parameters=fedavg().initial_parameters, fraction_evaluate=0.0)
    own = run_older(fixbn(strategy, momentum=momentum), app(), 2)[2]
    weighted = app(examples=[8, 8, 8, 1000])
    assert all(map(np.array_equal, own, run_older(fixbn(momentum=momentum), weighted, 2)[2]))


class Zeroing(FedAvg):
    """Trains from a changed model."""

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        first, *others = parameters_to_ndarrays(parameters)
        changed = ndarrays_to_parameters([0 * first, *others])
        return super().configure_fit(server_round, changed, client_manager)


def test_clients_train_from_the_model_that_a_strategy_sends() -> None:
    received: list[list[np.ndarray]] = []

    class Recording(Trainer):
        def fit(self, parameters: Any, config: Any) -> Any:
            received.append(parameters)
            return super().fit(parameters, config)

    strategy = fixbn(Zeroing(initial_parameters=fedavg().initial_parameters))
    of_round = run_older(strategy, app(client=Recording), 1)
    assert len(received) == CLIENTS
    for first, *others in received:
        assert not first.any()
        assert all(map(np.array_equal, others, of_round[0][1:]))


class Best(FedAvg):
    """Lets clients evaluate the best model, here the first round's."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        if server_round == 1:
            self.best = parameters
        return parameters, metrics

    def configure_evaluate(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        return super().configure_evaluate(server_round, self.best, client_manager)


@pytest.mark.parametrize("freeze_after", [2, 1.0])
def test_a_model_is_evaluated_with_its_own_statistics(freeze_after: Any) -> None:
    received: list[list[np.ndarray]] = []

    class Recording(Trainer):
        def evaluate(self, parameters: Any, config: Any) -> Any:
            received.append(parameters)
            return super().evaluate(parameters, config)

    strategy = Best(initial_parameters=fedavg().initial_parameters)
    fixed = fixbn(strategy, freeze_after=freeze_after)
    of_round = run_older(fixed, app(client=Recording), ROUNDS)
    assert len(received) == CLIENTS * ROUNDS
    variance = NAMES.index("norm.running_var")
    assert not np.array_equal(of_round[1][variance], of_round[2][variance])
    assert all(all(map(np.array_equal, arrays, of_round[1])) for arrays in received)


@pytest.mark.parametrize(
    ("values", "mean"),
    [([0.1, math.nan, 0.2, math.nan], 0.15), ([math.nan] * 4, math.nan)],
)
def test_an_undefined_metric_is_averaged_over_the_clients_that_have_it(
    values: list[float], mean: float
) -> None:
    """All clients have equally many examples. A user's average finds the metric in any case."""
    averages: list[float] = []

    def on_reply(partition: int, _: int, __: Any, metrics: dict[str, Any]) -> None:
        metrics["auc"] = values[partition]

    def average(metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        averages.append(float(np.mean([own["auc"] for _, own in metrics])))
        return {"auc": averages[-1]}

    strategy = fedavg(fit_metrics_aggregation_fn=average)
    run_older(fixbn(strategy), app(on_reply=on_reply), 1)
    assert averages == [pytest.approx(mean, nan_ok=True)]


def test_another_floating_type_is_converted_with_one_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def on_reply(partition: int, _: int, arrays: list[np.ndarray], __: Any) -> None:
        if partition == 1:
            for place, array in enumerate(arrays):
                if array.dtype == np.float32:
                    arrays[place] = array.astype(np.float64)

    of_round = run_older(fixbn(), app(on_reply=on_reply), ROUNDS)
    assert [a.dtype for a in of_round[ROUNDS]] == [a.dtype for a in of_round[0]]
    assert caplog.text.count("returned float64 for float32: converted") == 1


def test_a_client_without_examples_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    run_older(fixbn(), app(examples=[0, 1, 1, 1]), ROUNDS)
    assert caplog.text.count("has no examples: left out of the average") == 1
    assert "reply dropped" not in caplog.text


def test_stop_ends_training_after_the_current_round() -> None:
    trained: list[int] = []

    class Recording(Trainer):
        def fit(self, parameters: Any, config: Any) -> Any:
            trained.append(config["server-round"])
            if config["server-round"] == 2:
                strategy.stop()
            return super().fit(parameters, config)

    strategy = fixbn()
    of_round = run_older(strategy, app(client=Recording), ROUNDS)
    assert trained == [1] * CLIENTS + [2] * CLIENTS
    assert all(map(np.array_equal, of_round[ROUNDS], of_round[2]))


def test_the_inner_strategys_methods_and_attributes_are_accessible() -> None:
    strategy = fixbn(fedavg(min_fit_clients=3))
    assert strategy.min_fit_clients == 3
    with pytest.raises(AttributeError, match="nor FedAvg inside it"):
        _ = strategy.nothing


def test_a_client_that_keeps_batch_norm_private_causes_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def on_reply(partition: int, _: int, arrays: list[np.ndarray], __: Any) -> None:
        if partition == 1:
            del arrays[NAMES.index("norm.running_mean")]

    run_older(fixbn(), app(on_reply=on_reply), 1)
    assert "(FedBN) contradicts FixBN" in caplog.text


# FixBN with freeze_after=1.0 changes nothing


class Halving(FedAvg):
    """Halves the learning rate once, in the config of every later round."""

    rate = 0.1

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        if server_round == 3:
            self.rate *= 0.5
        fits = super().configure_fit(server_round, parameters, client_manager)
        for _, fit in fits:
            fit.config = {"lr": self.rate, "server-round": server_round}
        return fits


@pytest.mark.parametrize("make", [FedAvg, Saving, Halving])
def test_a_run_that_never_freezes_has_flowers_messages_and_metrics(make: Any) -> None:
    def run(wrap: bool) -> tuple[list[Any], list[Any]]:
        seen: list[Any] = []
        averaged: list[Any] = []

        class Recording(Trainer):
            def fit(self, parameters: Any, config: Any) -> Any:
                own = {key: v for key, v in config.items() if not key.startswith("fixbn")}
                seen.append((own, len(parameters), self.partition))
                return super().fit(parameters, config)

        def average(metrics: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
            averaged.append(sorted((n, sorted(own.items())) for n, own in metrics))
            return {}

        strategy = make(
            initial_parameters=fedavg().initial_parameters,
            on_fit_config_fn=lambda server_round: {"server-round": server_round},
            fit_metrics_aggregation_fn=average,
        )
        strategy.fraction_evaluate = 0.0
        strategy = fixbn(strategy, freeze_after=1.0) if wrap else strategy
        run_older(strategy, app(metrics={"loss": 0.5}), ROUNDS)
        return sorted(seen, key=str), averaged

    assert run(True) == run(False)
