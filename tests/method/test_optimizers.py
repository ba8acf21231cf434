"""Every optimiser of torch continues over rounds of local_training as if never interrupted.

Each round has a new model object and a new optimiser, as in clients, so buffers are matched only by
name. The weights are passed on as a state dict, the buffers in the context's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)

from fixbn_flwr import Phase, local_training
from fixbn_flwr.errors import MomentumError
from fixbn_flwr.method.batch_norm import statistics
from fixbn_flwr.method.optimizer_buffers import read_buffers, read_momentum, write_buffers
from tests.support.rounds import client, round_config

Build = Callable[[Any], Optimizer]

OPTIMISERS: dict[str, Build] = {
    "SGD": lambda p: SGD(p, 0.01),
    "SGD momentum": lambda p: SGD(p, 0.01, momentum=0.9),
    "SGD nesterov": lambda p: SGD(p, 0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
    "SGD dampening": lambda p: SGD(p, 0.01, momentum=0.9, dampening=0.5),
    "SGD fused": lambda p: SGD(p, 0.01, momentum=0.9, fused=True),
    "SGD maximize": lambda p: SGD(p, 0.01, momentum=0.9, maximize=True, foreach=True),
    "Adam": lambda p: Adam(p, 0.01, weight_decay=0.01),
    "Adam amsgrad": lambda p: Adam(p, 0.01, amsgrad=True, foreach=True),
    "Adam fused": lambda p: Adam(p, 0.01, fused=True),
    "AdamW": lambda p: AdamW(p, 0.01),
    "AdamW tensor rate": lambda p: AdamW(p, torch.tensor(0.01)),
    "NAdam": lambda p: NAdam(p, 0.01, decoupled_weight_decay=True, weight_decay=0.01),
    "RAdam": lambda p: RAdam(p, 0.01),
    "Adamax": lambda p: Adamax(p, 0.01),
    "Adadelta": lambda p: Adadelta(p, 0.5),
    "Adagrad": lambda p: Adagrad(p, 0.01, lr_decay=0.1, initial_accumulator_value=0.5),
    "Adagrad fused": lambda p: Adagrad(p, 0.01, fused=True),
    "RMSprop": lambda p: RMSprop(p, 0.01),
    "RMSprop centered": lambda p: RMSprop(p, 0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: Rprop(p, 0.01),
    "ASGD": lambda p: ASGD(p, 0.01, t0=3, lambd=0.1),
}
# Those that came later than the oldest torch that the library supports.
if hasattr(torch.optim, "Adafactor"):  # 2.5
    OPTIMISERS["Adafactor"] = lambda p: torch.optim.Adafactor(p, 0.01)
if hasattr(torch.optim, "Muon"):  # 2.9
    OPTIMISERS["Muon"] = lambda p: torch.optim.Muon([q for q in p if q.dim() == 2], 0.01)
ROUNDS = (1, 2, 4)
AVERAGED = ("SGD", "Muon")


class Network(nn.Module):
    """A model with parameters of 0 to 4 dimensions, some tied, frozen or without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.one = nn.Linear(4, 4)
        self.two = nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.frozen = nn.Linear(4, 2).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        y: Tensor = self.frozen(self.two(self.one(x).relu())) * self.scale
        return y


def network(dtype: torch.dtype = torch.float32) -> Network:
    torch.manual_seed(0)
    return Network().to(dtype)


def train(model: nn.Module, optimizer: Optimizer, server_round: int) -> None:
    for step in range(2):
        generator = torch.Generator().manual_seed(10 * server_round + step)
        x = torch.randn(3, 2, 6, 6, generator=generator).to(next(model.parameters()))
        optimizer.zero_grad()
        (model.train()(x) - 1).square().sum().backward()
        optimizer.step()


def same_state(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_every_optimiser_of_torch_is_tested() -> None:
    shipped = {
        name
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    }
    assert {name.split()[0] for name in OPTIMISERS} | {"LBFGS", "SparseAdam"} == shipped


def check_rounds(build: Build, dtype: torch.dtype = torch.float32) -> None:
    reference = network(dtype)
    uninterrupted = build(reference.parameters())
    context, arrays = client(), network(dtype).state_dict()
    for server_round in ROUNDS:
        model = network(dtype)
        model.load_state_dict(arrays)
        # In another order, which torch's own state_dict does not support.
        optimizer = build(list(model.parameters())[:: -1 if server_round == 2 else 1])
        with local_training(model, optimizer, round_config(server_round), context):
            train(model, optimizer, server_round)
        arrays = model.state_dict()
        train(reference, uninterrupted, server_round)
        assert same_state(model, reference)
    assert not same_state(reference, network(dtype))


@pytest.mark.parametrize("name", OPTIMISERS)
def test_new_optimisers_in_each_round_equal_one_optimiser(name: str) -> None:
    check_rounds(OPTIMISERS[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["SGD momentum", "Adam", "NAdam", "ASGD", "Adagrad"])
def test_scalar_buffers_keep_their_precision(name: str, dtype: torch.dtype) -> None:
    """An optimiser's counts and rates are float32 for parameters of any type."""
    check_rounds(OPTIMISERS[name], dtype)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_reset_starts_like_a_new_optimiser(name: str) -> None:
    build = OPTIMISERS[name]
    fresh, used = network(), network()
    optimizer = build(used.parameters())
    train(used, optimizer, 7)
    used.load_state_dict(fresh.state_dict())
    with local_training(used, optimizer, round_config(momentum="reset"), client()):
        train(used, optimizer, 1)
    train(fresh, build(fresh.parameters()), 1)
    assert same_state(used, fresh)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_calibration_freezes_statistics_and_takes_smaller_steps(name: str) -> None:
    def trained(factor: float) -> nn.Module:
        model = network()
        optimizer = OPTIMISERS[name](model.parameters())
        received = round_config(1, phase=Phase.CALIBRATION, factor=factor)
        with local_training(model, optimizer, received, client()):
            train(model, optimizer, 1)
        return model

    def distance(model: nn.Module) -> float:
        weights = zip(model.parameters(), network().parameters(), strict=True)
        return sum((one - other).abs().sum().item() for one, other in weights)

    full, tenth = trained(1.0), trained(0.1)
    assert 0 < distance(tenth) < 0.5 * distance(full)
    before = statistics(network())
    assert all(torch.equal(value, before[key]) for key, value in statistics(tenth).items())


# Sparse gradients and Python's numbers


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3, sparse=True)
        self.norm = nn.BatchNorm1d(3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.embedding(x)).pow(3)
        return y


def test_sparse_adam_continues_with_its_count() -> None:
    def steps(model: nn.Module, optimizer: Optimizer, server_round: int) -> None:
        for word in range(2):
            optimizer.zero_grad()
            model(torch.tensor([word, server_round, 0])).sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    reference, model, context = Words(), Words(), client()
    model.load_state_dict(reference.state_dict())
    uninterrupted = SparseAdam(reference.parameters(), 0.1)
    for server_round in ROUNDS:
        optimizer = SparseAdam(model.parameters(), 0.1)
        with local_training(model, optimizer, round_config(server_round), context):
            steps(model, optimizer, server_round)
        steps(reference, uninterrupted, server_round)
        assert same_state(model, reference)
    count = optimizer.state[model.embedding.weight]["step"]
    assert type(count) is int
    assert count == 2 * len(ROUNDS)


# A compiled step


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch's compiler
@pytest.mark.parametrize("name", ["SGD momentum", "AdamW tensor rate"])
def test_a_compiled_step_finds_the_buffers_of_each_round(name: str) -> None:
    reference, model, context = network(), network(), client()
    for one in (reference, model):
        one.conv.bias.requires_grad_(
            False
        )  # before batch normalisation, its gradient is rounding noise
    uninterrupted = OPTIMISERS[name](reference.parameters())
    optimizer = OPTIMISERS[name](model.parameters())
    optimizer.step = torch.compile(optimizer.step, backend="eager")  # type: ignore[method-assign]
    for server_round in ROUNDS:
        with local_training(model, optimizer, round_config(server_round), context):
            train(model, optimizer, server_round)
        optimizer.state.clear()  # as another client of the process would
        train(reference, uninterrupted, server_round)
        torch.testing.assert_close(model.state_dict(), reference.state_dict())


# Averaged by the server


@pytest.mark.skipif("Muon" not in OPTIMISERS, reason="this torch has no Muon")
def test_global_momentum_supports_muon() -> None:
    model = network()
    optimizer = OPTIMISERS["Muon"](model.parameters())
    with local_training(model, optimizer, round_config(momentum="global"), client()) as local:
        train(model, optimizer, 1)
    momentum = local.metrics["fixbn-momentum-buffers"]
    saved = safetensors.torch.load(momentum)
    assert saved.keys() == {"one.weight", "frozen.weight", "unused.weight"}
    assert saved["one.weight"].any()


@pytest.mark.parametrize("name", [name for name in OPTIMISERS if name.split()[0] not in AVERAGED])
def test_global_momentum_refuses_all_other_optimisers_before_training(name: str) -> None:
    model = network()
    optimizer = OPTIMISERS[name](model.parameters())
    with (
        pytest.raises(
            MomentumError, match="more than momentum, but the server can average only SGD's"
        ),
        local_training(model, optimizer, round_config(momentum="global"), client()),
    ):
        pytest.fail("entered")


# Optimisers whose state cannot be saved


def test_lbfgs_trains_with_reset_and_is_refused_in_other_modes() -> None:
    model = network()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = LBFGS(trained, 0.1, max_iter=3)
    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = (model(x) - 1).square().sum()
        loss.backward()
        return loss

    with local_training(model, optimizer, round_config(momentum="reset"), client()):
        first = optimizer.step(closure)
        assert optimizer.step(closure) < first
    with (
        pytest.raises(MomentumError, match=r'LBFGS keeps one history.*momentum="reset"'),
        local_training(model, optimizer, round_config(momentum="local"), client()),
    ):
        pytest.fail("entered")


class Strange(Optimizer):
    """A user's optimiser with its own state."""

    def __init__(self, trained: Any, saved: dict[Any, Any]) -> None:
        super().__init__(trained, {"lr": 0.1})
        self.saved = saved

    def step(self, closure: Any = None) -> None:
        for key, value in self.saved.items():
            self.state[self.param_groups[0]["params"][0] if key == "first" else key] = value


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"count": {"n": 1}}, r"Strange keeps 'count' for all parameters together"),
        ({"first": {"history": []}}, r"Strange keeps 'history' for 'weight', which is a list"),
        ({"first": {"rate": 0.5}}, r"Strange keeps 'rate' for 'weight', which is a float"),
        ({"first": {"row": torch.zeros(2)}}, r"shapes \(2,\) for 'weight', which has \(2, 3\)"),
        ({"first": {"flat": torch.zeros(6)}}, r"shapes \(6,\) for 'weight', which has \(2, 3\)"),
    ],
)
def test_unsupported_optimizer_state_fails(saved: dict[Any, Any], message: str) -> None:
    model = nn.Linear(3, 2)
    optimizer = Strange(model.parameters(), saved)
    optimizer.step()
    with pytest.raises(MomentumError, match=message):
        read_buffers(model, optimizer)


def test_a_custom_buffer_of_the_parameters_shape_is_saved() -> None:
    model = nn.Linear(3, 2)
    saved = {"first": {"delta": torch.ones(2, 3), "norm": torch.tensor(2.0), "none": None}}
    optimizer = Strange(model.parameters(), saved)
    optimizer.step()
    buffers = read_buffers(model, optimizer)
    assert list(buffers) == ["weight.delta", "weight.norm"]
    restored = Strange(model.parameters(), {})
    write_buffers(model, restored, buffers)
    assert restored.state[model.weight]["norm"] == 2


# Models that changed


@pytest.mark.parametrize(
    "name", [n for n in ("SGD momentum", "Adam", "Adafactor", "Adagrad") if n in OPTIMISERS]
)
@pytest.mark.parametrize("shape", [(3, 3), (4, 1), (1, 4)])
def test_a_parameter_of_another_shape_fails(name: str, shape: tuple[int, int]) -> None:
    """This includes shapes that could be broadcast to the new parameter."""

    def model_of(shape: tuple[int, int]) -> nn.Module:
        return nn.Sequential(nn.Linear(*shape, bias=False), nn.BatchNorm1d(shape[1], affine=False))

    model = model_of(shape)
    optimizer = OPTIMISERS[name](model.parameters())
    model(torch.arange(2 * shape[0]).float().reshape(2, -1)).pow(3).sum().backward()
    optimizer.step()
    buffers = read_buffers(model, optimizer)
    other = model_of((4, 4))
    with pytest.raises(MomentumError, match=r"'0\.weight'.*\(4, 4\)"):
        write_buffers(other, OPTIMISERS[name](other.parameters()), buffers)


def test_a_parameter_that_is_trained_later_starts_from_zero_beside_saved_ones() -> None:
    """Adagrad starts with an initial sum for it, and with the saved sums for the others."""
    model, context = network(), client()
    optimizer = Adagrad(model.one.parameters(), 0.1)
    with local_training(model, optimizer, round_config(1), context):
        train(model, optimizer, 1)
    saved = read_buffers(model, optimizer)
    both = Adagrad([*model.one.parameters(), model.scale], 0.1, initial_accumulator_value=0.5)
    with local_training(model, both, round_config(2), context):
        assert torch.equal(both.state[model.one.bias]["sum"], saved["one.bias.sum"])
        assert both.state[model.scale]["sum"] == 0.5
        train(model, both, 2)


# Wrapped models


def test_data_parallel_has_the_same_names() -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    names = list(read_momentum(model, optimizer))
    parallel = nn.DataParallel(model)
    assert list(read_momentum(parallel, optimizer)) == names
    compiled = torch.compile(parallel, backend="eager")
    assert list(read_momentum(compiled, optimizer)) == names
    of_its_own = nn.ModuleDict({"module": model})
    assert list(read_momentum(of_its_own, optimizer)) == [f"module.{name}" for name in names]
