"""Checks METHOD.md's identities with the real strategy and clients, and its list of mistakes.

If all clients take part with one local step per round and equal batches, calibration computes, up
to rounding, what one machine computes on the union of the batches. The reference does not use the
code under test: it freezes each BN layer with ``eval()`` right before each forward pass, and steps
with torch's own SGD.

Each published mistake and the tests that catch it:

1.  freeze undone by ``model.train()``: test_batch_norm.test_model_train_does_not_thaw; every
    identity below, whose clients call ``model.train()`` in each step
2.  ``model.eval()`` on everything: test_batch_norm.test_dropout_stays_active; the identities of
    the small model below, which has dropout
3.  affine parameters frozen too: test_batch_norm.test_affine_parameters_get_gradients;
    server/test_strategy.test_statistics_are_bit_identical_after_the_freeze
4.  own instead of aggregated statistics frozen (FedBN): the same test of test_strategy, which
    checks the statistics that every client trains with
5.  statistics never aggregated: server/test_strategy.test_exploration_averages_the_statistics and
    server/test_strategy_input.test_a_client_that_returns_only_parameters_fails_with_the_remedy
6.  BN found by ``"bn" in name``:
    test_batch_norm_zoo.test_a_search_by_name_misses_layers_that_a_search_by_class_finds
7.  no BN and no error: test_batch_norm.test_a_model_without_statistics_fails and
    server/test_strategy_input.test_a_model_without_statistics_is_refused
8.  counters averaged to float64, integers set to zero: test_averaging.test_merged_counters_...,
    server/test_strategy.test_counters_stay_integers and test_other_integers_keep_their_values
9.  server optimisers change the statistics:
    server/test_wrapped_strategy.test_server_optimisers_change_only_parameters
10. optimiser new in each round or shared by clients: the momentum modes below (their optimiser is
    new in each round),
    client/test_local_training.test_a_shared_optimizer_leaks_no_momentum_between_clients, and
    test_the_apps_client_leaks_no_momentum below
11. clients smaller than a batch skipped: test_a_client_smaller_than_a_batch_trains below
12. the best accuracy reported and 13. one learning rate for all: out of scope, because a strategy
    and a context manager report nothing and choose no rate. client/test_local_training and
    server/test_momentum_modes test learning_rate_factor.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD

from fixbn_flwr import FixBN
from fixbn_flwr.app.client.image_client import FixBNClient
from fixbn_flwr.app.client_app import client_app_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.legacy import FixBN as LegacyFixBN
from fixbn_flwr.models.resnet20 import ResidualNetwork, resnet20
from fixbn_flwr.tasks import Split, Task
from fixbn_flwr.tasks.metrics import Accuracy
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import (
    Batch,
    dropout_seed,
    initial_arrays,
    partition_of,
    sgd_step,
    training_app,
)
from tests.support.older_generation import arrays_of, numpy_app, run_older
from tests.support.rounds import saved_buffers

CLIENTS, BATCH, CLASSES = 3, 4, 3
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 0.01
MODES = ("local", "global", "reset")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}

State = dict[str, Tensor]
Data = Callable[[int, int], list[Batch]]


def _small(norm: str = "bn") -> nn.Module:
    """A model with BatchNorm1d and dropout, which draws from torch's global generator."""
    layer = nn.BatchNorm1d(16) if norm == "bn" else nn.GroupNorm(2, 16)
    return nn.Sequential(
        nn.Linear(6, 16), layer, nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES)
    )


def _resnet20(norm: str = "bn") -> nn.Module:
    return resnet20(norm, classes=CLASSES)


# Images are small. With fewer activations it is less likely that one is so close to zero that
# float32 rounding changes its sign before ReLU, which no implementation can avoid.
ARCHITECTURES = {"small": (_small, (6,)), "resnet20": (_resnet20, (3, 8, 8))}


def _data(shape: tuple[int, ...], dtype: torch.dtype) -> Data:
    """Return one batch per client and round, from a different distribution for each client."""

    def batches(partition: int, server_round: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(100 * server_round + partition)
        images = torch.randn(BATCH, *shape, generator=generator, dtype=dtype) + partition
        targets = torch.randint(0, CLASSES, (BATCH,), generator=generator)
        return [(images, targets)]

    return batches


def _model(build: Callable[[str], nn.Module], norm: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(7)
    return build(norm).to(dtype)


def _measure_statistics(model: nn.Module, data: Data) -> None:
    """Set the model's statistics to those of the data, as in a pretrained model."""
    for layer in model.modules():
        if isinstance(layer, _NormBase):
            layer.momentum = None  # a plain mean over all batches
    with torch.no_grad():
        for server_round in range(1, 4):
            model.train()(_union(data, server_round)[0])


def _union(data: Data, server_round: int) -> Batch:
    batches = [data(partition, server_round)[0] for partition in range(CLIENTS)]
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _freeze_by_eval(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, _NormBase):
            layer.eval()


def _centralised(
    model: nn.Module,
    data: Data,
    rounds: range,
    *,
    momentum: float,
    frozen: bool,
    buffers: Mapping[str, Tensor] | None = None,
) -> State:
    """Train by SGD on one machine; a round is one step on the union of the clients' batches.

    The mean gradient over the union is the mean of the gradients over its equal parts. So a model
    with dropout processes each client's part with that client's masks. A model without dropout
    processes the union in one forward pass.
    """
    optimizer = SGD(model.parameters(), LEARNING_RATE, momentum, weight_decay=WEIGHT_DECAY)
    for name, parameter in model.named_parameters():
        if buffers:
            optimizer.state[parameter]["momentum_buffer"] = buffers[name].clone()
    in_parts = any(isinstance(layer, nn.Dropout) for layer in model.modules())
    for server_round in rounds:
        model.train()
        if frozen:
            _freeze_by_eval(model)
        optimizer.zero_grad()
        if in_parts:
            for partition in range(CLIENTS):
                ((images, targets),) = data(partition, server_round)
                torch.manual_seed(dropout_seed(partition, server_round))
                (cross_entropy(model(images), targets) / CLIENTS).backward()
        else:
            images, targets = _union(data, server_round)
            cross_entropy(model(images), targets).backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _federated(
    strategy: Strategy, model: nn.Module, data: Data, rounds: int
) -> tuple[State, dict[int, ArrayRecord]]:
    """Run a federation; return its parameters and the global arrays of each round."""
    clients_model = copy.deepcopy(model)  # shared by all clients; each has a new optimiser
    app = training_app(
        lambda: clients_model,
        data,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    grid = SerializingGrid(app, CLIENTS, shuffle_seed=1)
    of_round: dict[int, ArrayRecord] = {}

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        of_round[server_round] = arrays

    result = strategy.start(grid, initial_arrays(model), rounds, evaluate_fn=evaluate)
    state = result.arrays.to_torch_state_dict()
    return {name: state[name] for name, _ in model.named_parameters()}, of_round


def _difference(got: State, expected: State) -> float:
    """Return the largest deviation of any array, relative to its largest value."""
    assert got.keys() == expected.keys()
    return max(
        float((got[name] - expected[name]).abs().max() / expected[name].abs().max())
        for name in expected
    )


@pytest.mark.parametrize(
    ("architecture", "mode", "dtype"),
    [
        *((name, mode, torch.float64) for name in ARCHITECTURES for mode in MODES),
        *(("small", mode, torch.float32) for mode in MODES),
        ("resnet20", "local", torch.float32),
    ],
)
def test_calibration_equals_centralised_sgd(
    architecture: str, mode: str, dtype: torch.dtype
) -> None:
    build, shape = ARCHITECTURES[architecture]
    data, rounds = _data(shape, dtype), 3
    model = _model(build, "bn", dtype)
    _measure_statistics(model, data)
    strategy = FixBN(FedAvg(fraction_evaluate=0.0), freeze_after=0, momentum=mode)
    got, _ = _federated(strategy, model, data, rounds)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    momentum = 0.0 if mode == "reset" else MOMENTUM
    expected = _centralised(model, data, range(1, rounds + 1), momentum=momentum, frozen=True)
    assert _difference(got, expected) < TOLERANCE[dtype]
    assert _difference(got, start) > 1e-3  # they trained


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("architecture", "mode", "norm"),
    [
        *(("small", mode, norm) for mode in MODES for norm in ("bn", "gn")),
        ("resnet20", "local", "bn"),
    ],
)
def test_the_older_generation_equals_centralised_sgd(
    architecture: str, mode: str, norm: str
) -> None:
    """NumPyClients under an older strategy: frozen statistics, or group norm in every round."""
    build, shape = ARCHITECTURES[architecture]
    dtype, rounds, frozen = torch.float64, 3, norm == "bn"
    data, model = _data(shape, dtype), _model(build, norm, dtype)
    if frozen:
        _measure_statistics(model, data)
    strategy = LegacyFixBN(
        OlderFedAvg(
            initial_parameters=ndarrays_to_parameters(arrays_of(model)),
            fraction_evaluate=0.0,
        ),
        freeze_after=0 if frozen else 1.0,
        parameter_names=list(model.state_dict()),
        num_rounds=rounds,
        momentum=mode,
    )
    app = numpy_app(
        lambda: copy.deepcopy(model),
        data,
        learning_rate=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    arrays = run_older(strategy, app, rounds, clients=CLIENTS, shuffle_seed=1)[rounds]
    state = dict(zip(model.state_dict(), map(torch.from_numpy, arrays), strict=True))
    got = {name: state[name] for name, _ in model.named_parameters()}
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    momentum = 0.0 if mode == "reset" else MOMENTUM
    expected = _centralised(model, data, range(1, rounds + 1), momentum=momentum, frozen=frozen)
    assert _difference(got, expected) < 1e-12
    assert _difference(got, start) > 1e-3  # they trained


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_calibration_after_exploration_equals_centralised_sgd(architecture: str, mode: str) -> None:
    """The reference starts with the model, S* and the mean momentum at the end of round T*."""
    build, shape = ARCHITECTURES[architecture]
    dtype, explored, rounds = torch.float64, 2, 4
    data = _data(shape, dtype)
    model = _model(build, "bn", dtype)
    mean_momentum: dict[str, Tensor] = {}

    class Watched(FixBN):
        """Records the momentum at the end of round T*."""

        def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
            messages = list(super().configure_train(server_round, arrays, config, grid))
            if server_round == explored + 1 and mode == "local":
                own = saved_buffers(grid)
                mean_momentum.update({name: sum(b[name] for b in own) / CLIENTS for name in own[0]})
            elif server_round == explored + 1:
                record = messages[0].content["fixbn-momentum"]
                mean_momentum.update(record.to_torch_state_dict())
            return messages

    strategy = Watched(FedAvg(fraction_evaluate=0.0), freeze_after=explored, momentum=mode)
    got, of_round = _federated(strategy, model, data, rounds)
    model.load_state_dict(of_round[explored].to_torch_state_dict())
    expected = _centralised(
        model, data, range(explored + 1, rounds + 1),
        momentum=MOMENTUM, frozen=True, buffers=mean_momentum,
    )  # fmt: skip
    assert _difference(got, expected) < 1e-12
    assert any(buffer.abs().max() > 0 for buffer in mean_momentum.values())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_group_norm_equals_centralised_sgd_from_the_first_round_on(
    architecture: str, mode: str
) -> None:
    build, shape = ARCHITECTURES[architecture]
    dtype, rounds = torch.float64, 3
    data, model = _data(shape, dtype), _model(build, "gn", dtype)
    strategy = FixBN(FedAvg(fraction_evaluate=0.0), freeze_after=1.0, momentum=mode)
    got, _ = _federated(strategy, model, data, rounds)
    momentum = 0.0 if mode == "reset" else MOMENTUM
    expected = _centralised(model, data, range(1, rounds + 1), momentum=momentum, frozen=False)
    assert _difference(got, expected) < 1e-12


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exploration_deviates_from_centralised_sgd(architecture: str) -> None:
    """The batch statistics of a part differ from those of the union, as the paper says."""
    build, shape = ARCHITECTURES[architecture]
    dtype, rounds = torch.float64, 3
    data, model = _data(shape, dtype), _model(build, "bn", dtype)
    strategy = FixBN(FedAvg(fraction_evaluate=0.0), freeze_after=1.0)
    got, _ = _federated(strategy, model, data, rounds)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # the reference uses one pass over the union, for its batch statistics
    optimizer = SGD(model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    for server_round in range(1, rounds + 1):
        sgd_step(model, optimizer, _union(data, server_round))
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert _difference(got, expected) > 1e-2


# The app's own client, under Flower's NumPyClient and the mod


def _tiny_task(images: int, *, classes: int = CLASSES) -> Task:
    random_ = np.random.default_rng(3)
    pixels = torch.from_numpy(random_.integers(0, 256, (images, 3, 8, 8), dtype=np.uint8))
    for client in range(CLIENTS):  # each client has a different distribution
        pixels[client::CLIENTS] //= client + 1
    split = Split(pixels, torch.from_numpy(random_.integers(0, classes, images)))

    def load(_: Path | None) -> tuple[Split, Split]:
        return split, split

    def build(norm: str) -> nn.Module:
        torch.manual_seed(7)
        return ResidualNetwork(3, classes, widths=(8, 16), blocks=1, norm=norm)

    return Task(
        name="tiny",
        classes=classes,
        load=load,
        models={"tiny": build, "resnet20": lambda norm: _model(_resnet20, norm, torch.float32)},
        mean=(127.5,) * 3,
        std=(70.0,) * 3,
        augment=None,
        loss=cross_entropy,
        metric=Accuracy,
    )


def _app(task: Task, settings: Settings, partitions: list[np.ndarray]) -> ClientApp:
    def client_of(context: Context) -> FixBNClient:
        return FixBNClient(task, partitions[partition_of(context)], settings, context)

    return client_app_of(client_of, [])


def _settings(**choices: object) -> Settings:
    return Settings(
        task="tiny",
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        device="cpu",
        **choices,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("model_name", "norm", "mode"),
    [
        *(("tiny", norm, mode) for norm in ("bn", "gn") for mode in MODES),
        ("resnet20", "bn", "local"),
        ("resnet20", "bn", "global"),
        ("resnet20", "gn", "local"),
    ],
)
def test_the_apps_client_equals_centralised_sgd(model_name: str, norm: str, mode: str) -> None:
    """A client's batch is all of its images, so the union is the data set in any order."""
    task, rounds = _tiny_task(CLIENTS * BATCH), 3
    settings = _settings(model=model_name, norm=norm, local_steps=1)
    partitions = [np.arange(client, CLIENTS * BATCH, CLIENTS) for client in range(CLIENTS)]
    model = task.models[model_name](norm)
    data, _ = task.load(None)
    union = ((data.images.float() - 127.5) / 70.0, data.targets)
    if norm == "bn":
        _measure_statistics(model, lambda p, _: [(union[0][p::CLIENTS], union[1][p::CLIENTS])])
    strategy = FixBN(
        FedAvg(fraction_evaluate=0.0), freeze_after=0 if norm == "bn" else 1.0, momentum=mode
    )
    grid = SerializingGrid(_app(task, settings, partitions), CLIENTS, shuffle_seed=1)
    state = strategy.start(grid, initial_arrays(model), rounds).arrays.to_torch_state_dict()
    got = {name: state[name] for name, _ in model.named_parameters()}
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    expected = _centralised(
        model,
        lambda p, _: [(union[0][p::CLIENTS], union[1][p::CLIENTS])],
        range(1, rounds + 1),
        momentum=0.0 if mode == "reset" else settings.momentum_coefficient,
        frozen=norm == "bn",
    )
    assert _difference(got, expected) < 1e-5
    assert _difference(got, start) > 1e-3


@pytest.mark.parametrize("wrapped", [True, False], ids=["FixBN", "plain FedAvg"])
def test_the_apps_client_leaks_no_momentum(wrapped: bool) -> None:
    """Clients of a process share one optimiser; the state of one must not affect another."""
    task = _tiny_task(CLIENTS * BATCH)
    partitions = [np.arange(client, CLIENTS * BATCH, CLIENTS) for client in range(CLIENTS)]
    settings = _settings(model="tiny", norm="gn", local_steps=1)
    results = []
    for order in (1, 2):
        fed = FedAvg(fraction_evaluate=0.0)
        strategy = FixBN(fed, freeze_after=1.0, momentum="reset") if wrapped else fed
        grid = SerializingGrid(_app(task, settings, partitions), CLIENTS)
        random.seed(order)  # determines the order of FedAvg's clients
        model = task.models["tiny"]("gn")
        result = strategy.start(grid, initial_arrays(model), num_rounds=2)
        results.append(result.arrays.to_torch_state_dict())
    assert _difference(results[0], results[1]) < 1e-5


def test_a_client_smaller_than_a_batch_trains() -> None:
    task = _tiny_task(2)
    settings = _settings(model="tiny", norm="bn", local_steps=0, local_epochs=1)
    grid = SerializingGrid(_app(task, settings, [np.array([0]), np.array([1])]), 2)
    model = task.models["tiny"]("bn")
    before = model.classifier.weight.detach().clone()
    strategy = FixBN(FedAvg(fraction_evaluate=0.0), freeze_after=1)
    result = strategy.start(grid, initial_arrays(model), num_rounds=2)
    after = result.arrays.to_torch_state_dict()["classifier.weight"]
    assert not torch.equal(before, after)
