"""Clients of real projects with unusual optimizers, layers, types and data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from fixbn_flwr import FixBN, local_training
from fixbn_flwr.array_records import arrays_from, load_arrays
from fixbn_flwr.errors import ConfigError, RoundsFailedError, StatisticsMovedError
from fixbn_flwr.method.freezable_layers import check_freezable
from fixbn_flwr.method.weight_slots import without_weights
from fixbn_flwr.testing import SerializingGrid
from tests.support.rounds import client, round_config
from tests.support.small_federation import CLIENTS, batches, fedavg, federation, network


def train(model: nn.Module, optimizer: Optimizer, batch: Any, *, steps: int = 5) -> None:
    images, targets = batch
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()


class Lookahead(Optimizer):
    """Stores slow weights in the inner optimizer's state, as timm does."""

    def __init__(self, base_optimizer: Optimizer) -> None:
        self._base_optimizer = base_optimizer
        self.defaults = base_optimizer.defaults
        self.param_groups = base_optimizer.param_groups
        self.state = base_optimizer.state
        self.count = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._base_optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self._base_optimizer.step(closure)
        self.count += 1
        if self.count % 2 == 0:
            for parameter in self.param_groups[0]["params"]:
                state = self._base_optimizer.state[parameter]
                slow = state.setdefault("lookahead_slow_buff", parameter.clone())
                slow.add_(parameter - slow, alpha=0.5)
                parameter.copy_(slow)


class ScheduleFree(SGD):
    """Stores the sequence z, as schedule-free SGD does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                z = self.state[parameter].setdefault("z", parameter.clone())
                z.sub_(parameter.grad, alpha=group["lr"])
                parameter.lerp_(z, 0.5)


def second_round(build: Any, *, give: str = "inner") -> float:
    """Train two rounds, the second with a learning rate of 0; return how far the model moves."""
    context, moved = client(), 0.0
    for server_round, rate in ((1, 0.1), (2, 0.0)):
        model = network()
        optimizer = build(model, rate)
        inner = getattr(optimizer, "_base_optimizer", optimizer)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        given = optimizer if give == "outer" else inner
        with local_training(model, given, round_config(server_round), context):
            train(model, optimizer, batches(0, server_round)[0])
        after = list(model.parameters())
        moved = max(float((a - b).detach().abs().max()) for a, b in zip(after, before, strict=True))
    return moved


@pytest.mark.parametrize("give", ["inner", "outer"])
def test_lookahead_starts_from_the_global_model(give: str) -> None:
    moved = second_round(
        lambda model, rate: Lookahead(SGD(model.parameters(), rate, momentum=0.9)), give=give
    )
    assert moved == 0.0


def test_a_schedule_free_optimizer_starts_from_the_global_model() -> None:
    assert second_round(lambda model, rate: ScheduleFree(model.parameters(), rate)) == 0.0


def test_the_outer_optimizer_passes_momentum_to_the_inner_one() -> None:
    context, buffers = client(), []
    for server_round in (1, 2):
        model = network()
        base = SGD(model.parameters(), 0.1, momentum=0.9)
        with local_training(model, Lookahead(base), round_config(server_round), context):
            buffers.append({**base.state})
            train(model, base, batches(0, server_round)[0])
    assert buffers[0] == {}
    assert all("momentum_buffer" in state for state in buffers[1].values())


def test_weights_are_distinguished_from_momentum_by_their_values() -> None:
    model = network()
    optimizer = Adam(model.parameters(), 0.01, weight_decay=0.1)
    train(model, optimizer, batches(0, 1)[0], steps=20)
    parameters = dict(model.named_parameters())
    buffers = {
        f"{name}.{slot}": value
        for name, parameter in parameters.items()
        for slot, value in optimizer.state[parameter].items()
    }
    momentum, weights = without_weights(buffers, parameters)
    assert (momentum.keys(), weights) == (buffers.keys(), set())
    copies = {f"{name}.anchor": parameter * 1.05 for name, parameter in parameters.items()}
    momentum, weights = without_weights({**buffers, **copies}, parameters)
    assert weights == {"anchor"}
    assert momentum == {}  # an unknown optimizer may expect its slots together


class OwnNorm(nn.Module):
    """Batch normalization written by hand, as in textbooks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
            self.running_mean.lerp_(mean.detach(), 0.1)
            self.running_var.lerp_(var.detach(), 0.1)
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) / (var + 1e-5).sqrt() * self.weight


class Stubborn(OwnNorm):
    """Ignores its training mode."""

    def forward(self, x: Tensor) -> Tensor:
        self.__dict__["training"] = True
        mean, var = x.mean(0), x.var(0, unbiased=False)
        self.running_mean.lerp_(mean.detach(), 0.1)
        return (x - mean) / (var + 1e-5).sqrt() * self.weight


class Asserting(OwnNorm):
    """Refuses inputs of other shapes in its own way."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 2
        return super().forward(x)


class Dropping(OwnNorm):
    """Has dropout in it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        dropped: Tensor = self.dropout(super().forward(x))
        return dropped


def own_network(norm: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), norm(5), nn.ReLU(), nn.Linear(5, 3))


def app_of(norm: type[nn.Module]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        model = own_network(norm)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = SGD(model.parameters(), 0.05, momentum=0.9)
        partition = int(context.node_config["partition-id"])
        with local_training(model, optimizer, message.content, context) as local:
            train(model, optimizer, batches(partition, 1)[0])
        content = {"arrays": ArrayRecord(model.state_dict()), **local.records}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({**content, "metrics": metrics}), reply_to=message)

    return app


@pytest.mark.parametrize("statistics", ["mean", "pooled"])
def test_batch_norm_written_by_hand_is_frozen(
    statistics: Any, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = FixBN(fedavg(), freeze_after=1, statistics=statistics)
    arrays = ArrayRecord(own_network(OwnNorm).state_dict())
    grid = SerializingGrid(app_of(OwnNorm), CLIENTS)
    result, of_round = federation(strategy, grid=grid, arrays=arrays, rounds=3)
    for name in ("1.running_mean", "1.running_var"):
        assert (of_round[3][name] == of_round[1][name]).all()
        assert (of_round[1][name] != of_round[0][name]).any()
    assert (of_round[3]["1.weight"] != of_round[1]["1.weight"]).any()
    assert "did not freeze" not in caplog.text
    assert result.train_metrics_clientapp[3]["fixbn-clients"] == CLIENTS


def test_a_layer_that_cannot_be_frozen_is_refused_in_the_first_round() -> None:
    arrays = ArrayRecord(own_network(Stubborn).state_dict())
    grid = SerializingGrid(app_of(Stubborn), CLIENTS)
    with pytest.raises(RoundsFailedError, match=r"(?s)round 1: .*layer '1' is a Stubborn, which"):
        federation(FixBN(fedavg(), freeze_after=2), grid=grid, arrays=arrays)


def test_freezable_layers_are_checked() -> None:
    check_freezable(network())
    for norm in (OwnNorm, Asserting, Dropping):
        check_freezable(own_network(norm))
    with pytest.raises(ConfigError, match=r"BatchNorm2d, or use the strategy without FixBN"):
        check_freezable(own_network(Stubborn))


def test_sparse_gradients_keep_their_momentum() -> None:
    """The steps are the same as without a break between the rounds."""

    def build(rate: float = 0.1) -> tuple[nn.EmbeddingBag, SGD]:
        torch.manual_seed(0)
        model = nn.EmbeddingBag(5, 3, sparse=True)
        return model, SGD(model.parameters(), rate, momentum=0.9)

    def step(model: nn.Module, optimizer: Optimizer, words: list[int]) -> None:
        optimizer.zero_grad()
        model(torch.tensor([words])).sum().backward()
        optimizer.step()

    uninterrupted, optimizer = build()
    for words in ([0, 1], [1, 2]):
        step(uninterrupted, optimizer, words)
    context, (model, _) = client(), build()
    for server_round, words in enumerate(([0, 1], [1, 2]), start=1):
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
        with local_training(model, optimizer, round_config(server_round), context):
            step(model, optimizer, words)
    assert torch.equal(model.weight, uninterrupted.weight)


def bfloat16_app(*, freezes: bool = True) -> ClientApp:
    """Return clients that train in bfloat16, inside ``local_training`` or without it."""
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        model = network().to(torch.bfloat16)
        load_arrays(model, message.content["arrays"])
        assert next(model.parameters()).dtype == torch.bfloat16
        optimizer = SGD(model.parameters(), 0.05, momentum=0.9)
        images, targets = batches(int(context.node_config["partition-id"]), 1)[0]
        received = message.content if freezes else RecordDict()
        with local_training(model, optimizer, received, context) as local:
            train(model, optimizer, (images.to(torch.bfloat16), targets))
        content = {"arrays": arrays_from(model), **local.records}
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({**content, "metrics": metrics}), reply_to=message)

    return app


def run_bfloat16(app: ClientApp, **options: Any) -> Any:
    strategy = FixBN(fedavg(), freeze_after=1, strict=True, **options)
    arrays = arrays_from(network().to(torch.bfloat16))
    return federation(strategy, grid=SerializingGrid(app, CLIENTS), arrays=arrays, rounds=3)


@pytest.mark.parametrize("momentum", ["reset", "local", "global"])
def test_a_bfloat16_model_is_sent_as_float32(momentum: Any) -> None:
    """The average of its statistics is no bfloat16 number, and no client is accused of that."""
    result, of_round = run_bfloat16(bfloat16_app(), momentum=momentum)
    assert result.train_metrics_clientapp[3]["fixbn-clients"] == CLIENTS
    assert (of_round[3]["norm.running_var"] == of_round[1]["norm.running_var"]).all()
    assert {str(array.dtype) for array in of_round[3].values()} == {"float32", "int64"}


def test_a_bfloat16_model_that_is_not_frozen_is_noticed() -> None:
    with pytest.raises(StatisticsMovedError, match="2 of 2 frozen statistics changed"):
        run_bfloat16(bfloat16_app(freezes=False), momentum="reset")


def test_a_client_without_steps_causes_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    config = {**round_config(2), "fixbn-phase": "calibration", "fixbn-learning-rate-factor": 0.1}
    with local_training(model, optimizer, config, client()):
        pass
    assert "learning_rate_factor" not in caplog.text
