"""local_training on its own, as a client calls it; test_strategy runs whole federations."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Optimizer

from fixbn_flwr import Phase, local_training
from fixbn_flwr.client.momentum_store import save_buffers
from fixbn_flwr.errors import ConfigError, MomentumError, NoStatisticsError, StatisticsMovedError
from fixbn_flwr.flower_compat import set_task_identity
from fixbn_flwr.method.batch_norm import statistics
from fixbn_flwr.method.optimizer_buffers import fingerprint
from fixbn_flwr.method.round_config import Momentum, RoundConfig
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, training_app
from tests.support.rounds import client, round_config

Wrap = Callable[[dict[str, Any], dict[str, Tensor]], Any]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), 0.1, momentum=0.9)


def _message_api(config: dict[str, Any], buffers: dict[str, Tensor]) -> RecordDict:
    content = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord(config)})
    if buffers:
        content["fixbn-momentum"] = ArrayRecord(buffers)
    return content


def _older(config: dict[str, Any], buffers: dict[str, Tensor]) -> dict[str, Any]:
    if buffers:
        return {**config, "fixbn-momentum-buffers": safetensors.torch.save(buffers)}
    return config


GENERATIONS = pytest.mark.parametrize("wrap", [_message_api, _older], ids=["message", "older"])


def train(model: nn.Module, optimizer: Optimizer, steps: int = 2, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 4, generator=generator)).square().sum().backward()
        optimizer.step()


def buffers_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        name: optimizer.state[parameter]["momentum_buffer"].clone()
        for name, parameter in model.named_parameters()
        if "momentum_buffer" in optimizer.state[parameter]
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# Phases


@GENERATIONS
def test_exploration_trains_as_without_fixbn(wrap: Wrap) -> None:
    model, twin = network(), network()
    with local_training(
        model, optimizer := sgd(model), wrap(round_config(), {}), client()
    ) as local:
        assert local.phase is Phase.EXPLORATION
        assert optimizer.param_groups[0]["lr"] == 0.1
        train(model, optimizer)
    train(twin, sgd(twin))
    assert same(dict(model.state_dict()), dict(twin.state_dict()))


@GENERATIONS
def test_calibration_freezes_statistics_and_multiplies_the_rate_of_the_steps(wrap: Wrap) -> None:
    """SGD without momentum moves by rate times gradient; the optimizer's own rate never changes."""
    model = network()
    optimizer, before = SGD(model.parameters(), 0.1), statistics(model)
    received = wrap(round_config(3, phase=Phase.CALIBRATION, factor=0.25), {})
    with local_training(model, optimizer, received, client()) as local:
        assert local.phase is Phase.CALIBRATION
        start = model[0].weight.detach().clone()
        train(model, optimizer, steps=1)
        assert torch.equal(model[0].weight, start.add(model[0].weight.grad, alpha=-0.1 * 0.25))
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert same(before, statistics(model))
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    start = model[0].weight.detach().clone()
    train(model, optimizer, steps=1)
    assert torch.equal(model[0].weight, start.add(model[0].weight.grad, alpha=-0.1))
    assert not same(before, statistics(model))


@pytest.mark.parametrize("second", [True, False])
def test_a_second_optimizer_at_the_full_rate_is_named_in_a_warning(
    second: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    optimizer, other = (SGD(model[place].parameters(), 0.1) for place in (0, 2))
    received = round_config(3, phase=Phase.CALIBRATION, factor=0.25)
    with local_training(model, optimizer, received, client()) as local:
        assert local.learning_rate_factor == 0.25
        train(model, optimizer)
        if second:
            other.step()
    warning = "learning_rate_factor=0.25 had no effect on 2 parameters of the model"
    assert (warning in caplog.text) == second


def test_a_group_that_is_added_in_the_block_is_trained_by_the_same_optimizer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = network()
    optimizer = SGD(model[0].parameters(), 0.1)
    received = round_config(3, phase=Phase.CALIBRATION, factor=0.25)
    with local_training(model, optimizer, received, client()):
        optimizer.add_param_group({"params": model[2].parameters()})
        train(model, optimizer)
    assert "had no effect" not in caplog.text


def test_calibration_of_a_model_without_statistics_fails() -> None:
    model = nn.Linear(4, 2)
    with (
        pytest.raises(NoStatisticsError),
        local_training(model, sgd(model), round_config(1, phase=Phase.CALIBRATION), client()),
    ):
        pytest.fail("entered")


# A server without FixBN


@pytest.mark.parametrize(
    "received",
    [
        {},
        {"lr": 0.1, "server-round": 3},
        RecordDict(),
        RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord({"server-round": 3})}),
    ],
)
def test_under_a_server_without_fixbn_nothing_changes(received: Any) -> None:
    model, context = network(), client()
    optimizer, before = sgd(model), statistics(network())
    train(model, optimizer, seed=5)
    saved = buffers_of(model, optimizer)
    with local_training(model, optimizer, received, context) as local:
        assert local.phase is None
        assert same(buffers_of(model, optimizer), saved)
        train(model, optimizer)
    assert local.records == {}
    assert local.metrics == {}
    assert not context.state
    assert not same(before, statistics(model))


def test_the_same_client_trains_under_plain_fedavg() -> None:
    def batches(partition: int, server_round: int) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(partition)
        return [(torch.randn(4, 4, generator=generator), torch.tensor([0, 1, 1, 0]))]

    grid = SerializingGrid(training_app(network, batches), 2)
    result = FedAvg().start(grid, initial_arrays(network()), 2)
    assert result.arrays["1.running_mean"].numpy().any()
    assert not any(context.state for context in grid.contexts.values())


# The argument for the message


def _message() -> Message:
    set_task_identity(1)
    return Message(_message_api(round_config(), {}), dst_node_id=1, message_type="train")


@pytest.mark.parametrize("build", [_message, lambda: None, lambda: [1.0], lambda: "config"])
def test_any_other_argument_is_refused_with_the_remedy(build: Callable[[], Any]) -> None:
    model = network()
    with (
        pytest.raises(ConfigError, match=r"msg\.content"),
        local_training(model, sgd(model), build(), client()),
    ):
        pytest.fail("entered")


@pytest.mark.parametrize(
    "change",
    [
        {"fixbn-phase": "thinking"},
        {"fixbn-momentum": "elsewhere"},
        {"fixbn-momentum": None},
        {"fixbn-learning-rate-factor": None},
        {"server-round": None},
    ],
)
def test_another_versions_config_is_refused(change: dict[str, Any]) -> None:
    config = {key: v for key, v in {**round_config(), **change}.items() if v is not None}
    model = network()
    with (
        pytest.raises(ConfigError, match="same version"),
        local_training(model, sgd(model), config, client()),
    ):
        pytest.fail("entered")


def test_the_config_may_have_any_key() -> None:
    model = network()
    content = RecordDict({"a": ConfigRecord({"b": 1}), "settings": ConfigRecord(round_config())})
    with local_training(model, sgd(model), content, client()) as local:
        assert local.phase is Phase.EXPLORATION


# Momentum


@GENERATIONS
def test_local_momentum_continues_through_new_models_and_optimisers(wrap: Wrap) -> None:
    context, ends = client(), []
    for server_round in (1, 2, 4):
        model = network()
        optimizer = sgd(model)
        with local_training(
            model, optimizer, wrap(round_config(server_round), {}), context
        ) as local:
            assert same(buffers_of(model, optimizer), ends[-1] if ends else {})
            train(model, optimizer, seed=server_round)
        ends.append(buffers_of(model, optimizer))
        assert local.records == {}
        assert local.metrics == {}


@GENERATIONS
@pytest.mark.parametrize("mode", ["reset", "local", "global"])
def test_a_shared_optimizer_leaks_no_momentum_between_clients(wrap: Wrap, mode: str) -> None:
    """All clients of a process share one model and one optimiser, and train as if alone."""
    shared = network()
    optimizer = sgd(shared)
    initial = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    contexts = {partition: client(partition) for partition in (0, 1)}
    alone = {partition: client(partition) for partition in (0, 1)}
    server = {"0.bias": torch.ones(5)} if mode == "global" else {}
    for server_round in (1, 2):
        for partition in (0, 1):
            received = wrap(round_config(server_round, momentum=mode), server)
            shared.load_state_dict(initial)
            with local_training(shared, optimizer, received, contexts[partition]):
                train(shared, optimizer, seed=partition)
            own = network()
            with local_training(own, own_optimizer := sgd(own), received, alone[partition]):
                train(own, own_optimizer, seed=partition)
            assert same(dict(shared.state_dict()), dict(own.state_dict()))


def test_adam_continues_with_its_step_count() -> None:
    context, reference = client(), network()
    expected = Adam(reference.parameters(), 0.1)
    model = network()
    for server_round in (1, 2, 3):
        optimizer = Adam(model.parameters(), 0.1)
        with local_training(model, optimizer, round_config(server_round), context):
            train(model, optimizer, seed=server_round)
        train(reference, expected, seed=server_round)
    assert same(dict(model.state_dict()), dict(reference.state_dict()))


@GENERATIONS
def test_reset_starts_from_zero_and_saves_nothing(wrap: Wrap) -> None:
    model, context = network(), client()
    optimizer = sgd(model)
    train(model, optimizer)
    with local_training(model, optimizer, wrap(round_config(momentum="reset"), {}), context):
        assert buffers_of(model, optimizer) == {}
        train(model, optimizer)
    assert not context.state


@GENERATIONS
def test_global_momentum_is_received_from_and_returned_to_the_server(wrap: Wrap) -> None:
    model, context = network(), client()
    optimizer = sgd(model)
    sent = {name: torch.full_like(p, 0.5) for name, p in model.named_parameters()}
    with local_training(
        model, optimizer, wrap(round_config(2, momentum="global"), sent), context
    ) as local:
        assert same(buffers_of(model, optimizer), sent)
        train(model, optimizer)
    expected = buffers_of(model, optimizer)
    if wrap is _message_api:
        record = local.records["fixbn-momentum"]
        assert list(record) == [name for name, _ in model.named_parameters()]
        assert same(dict(record.to_torch_state_dict()), expected)
        assert local.metrics == {}
    else:
        assert same(safetensors.torch.load(local.metrics["fixbn-momentum-buffers"]), expected)
        assert local.records == {}
    assert not context.state


@GENERATIONS
def test_averaged_buffers_get_the_parameters_type(wrap: Wrap) -> None:
    """The server has no bfloat16."""
    model = network().bfloat16()
    optimizer = sgd(model)
    averaged = {name: torch.ones(p.shape) for name, p in model.named_parameters()}
    received = wrap(round_config(2, momentum=Momentum.GLOBAL), averaged)
    with local_training(model, optimizer, received, client()):
        assert {b.dtype for b in buffers_of(model, optimizer).values()} == {torch.bfloat16}


@GENERATIONS
def test_global_starts_from_zero_in_the_first_round(wrap: Wrap) -> None:
    model = network()
    optimizer = sgd(model)
    train(model, optimizer)
    with local_training(model, optimizer, wrap(round_config(momentum="global"), {}), client()):
        assert buffers_of(model, optimizer) == {}


def test_another_run_starts_from_zero() -> None:
    model, context = network(), client(run_id=1)
    with local_training(model, optimizer := sgd(model), round_config(1), context):
        train(model, optimizer)
    later = client(run_id=2)
    later.state = context.state
    with local_training(model, optimizer, round_config(2), later):
        assert buffers_of(model, optimizer) == {}


def test_unsupported_optimizers_are_refused_before_training() -> None:
    model = network()
    for optimizer, mode in [
        (LBFGS(model.parameters()), "local"),
        (LBFGS(model.parameters()), "global"),
        (Adam(model.parameters()), "global"),
    ]:
        with (
            pytest.raises(MomentumError, match=type(optimizer).__name__),
            local_training(model, optimizer, round_config(momentum=mode), client()),
        ):
            pytest.fail("entered")


def test_saved_momentum_of_another_model_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    model, context = network(), client()
    with local_training(model, optimizer := sgd(model), round_config(1), context):
        train(model, optimizer)
    other = nn.Sequential(nn.Linear(9, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    with local_training(other, later := sgd(other), round_config(2), context):
        assert buffers_of(other, later) == {}
    assert "saved momentum dropped, it is of another model" in caplog.text


def test_saved_momentum_that_fits_no_parameter_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    model, context = network(), client()
    config = RoundConfig(1, Phase.EXPLORATION, Momentum.LOCAL, 1.0)
    save_buffers(context, config, {"nowhere": torch.ones(2)}, fingerprint(model))
    with local_training(model, optimizer := sgd(model), round_config(2), context):
        assert buffers_of(model, optimizer) == {}
    assert re.search(r"saved momentum dropped, .*'nowhere'.* Starting from zero", caplog.text)


# Exceptions


def _loop(model: nn.Module, optimizer: Optimizer, received: Any, context: Context) -> None:
    with local_training(model, optimizer, received, context):
        train(model, optimizer)
        raise RuntimeError("my loop")


@GENERATIONS
def test_an_exception_thaws_layers_restores_the_rate_and_saves_no_momentum(wrap: Wrap) -> None:
    model, context = network(), client()
    optimizer = sgd(model)
    with local_training(model, optimizer, wrap(round_config(1), {}), context):
        train(model, optimizer)
    saved = buffers_of(model, optimizer)
    received = wrap(round_config(2, phase=Phase.CALIBRATION, factor=0.1), {})
    with pytest.raises(RuntimeError, match="my loop"):
        _loop(model, optimizer, received, context)
    assert type(model[1]) is nn.BatchNorm1d
    assert optimizer.param_groups[0]["lr"] == 0.1
    with local_training(model, optimizer, wrap(round_config(3), {}), context):
        assert same(buffers_of(model, optimizer), saved)


def test_moved_statistics_fail_and_save_no_momentum() -> None:
    model, context = network(), client()
    optimizer = sgd(model)

    def reload() -> None:
        with local_training(model, optimizer, round_config(1, phase=Phase.CALIBRATION), context):
            train(model, optimizer)
            model[1].reset_running_stats()
            model[1].running_mean.add_(1)

    with pytest.raises(StatisticsMovedError):
        reload()
    assert not context.state
