"""The factor affects every optimiser step, and is visible nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.learning_rate import multiplied_learning_rate

FACTOR = 0.25  # a power of two, so that rate times factor is exact


def parameters(*values: float) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([value])) for value in values or (1.0,)]


def step(optimizer: Optimizer, gradient: float = 1.0) -> list[float]:
    """Take a step with the same gradient everywhere; return how far each parameter decreases."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.item() for p in trained]
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    return [start - p.item() for start, p in zip(before, trained, strict=True)]


def test_steps_use_the_multiplied_rate_and_the_optimizer_shows_its_own() -> None:
    optimizer = SGD(parameters(), 0.5)
    with multiplied_learning_rate(optimizer, FACTOR):
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert step(optimizer) == [0.125]
        assert optimizer.param_groups[0]["lr"] == 0.5
    assert step(optimizer) == [0.5]


def test_every_group_uses_its_own_rate_including_one_added_in_the_block() -> None:
    one, two, three = parameters(0.0, 0.0, 0.0)
    optimizer = SGD([{"params": [one], "lr": 1.0}, {"params": [two], "lr": 0.5}])
    with multiplied_learning_rate(optimizer, FACTOR):
        assert step(optimizer) == [0.25, 0.125]
        optimizer.add_param_group({"params": [three], "lr": 2.0})
        assert step(optimizer) == [0.25, 0.125, 0.5]
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5, 2.0]


def test_a_rate_set_in_the_block_is_multiplied_and_stays() -> None:
    optimizer = SGD(parameters(), 0.5)
    with multiplied_learning_rate(optimizer, FACTOR):
        optimizer.param_groups[0]["lr"] = 2.0
        assert step(optimizer) == [0.5]
    assert optimizer.param_groups[0]["lr"] == 2.0


SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "step": lambda o: StepLR(o, 2, 0.5),
    "exponential": lambda o: ExponentialLR(o, 0.5),
    "lambda": lambda o: LambdaLR(o, lambda n: 1 / (n + 1)),
    "cosine": lambda o: CosineAnnealingLR(o, 8),
    "one cycle": lambda o: OneCycleLR(o, 1.0, total_steps=8),
    "sequential": lambda o: SequentialLR(
        o, [LambdaLR(o, lambda n: (n + 1) / 4), ExponentialLR(o, 0.5)], [3]
    ),
    "plateau": lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0),
}


@pytest.mark.parametrize("built", ["before", "inside"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers_compute_the_same_rates(name: str, built: str) -> None:
    """The rates are those without the factor, and every step is a quarter as long."""

    def run(factor: float) -> tuple[list[float], list[float]]:
        optimizer = SGD(parameters(0.0), 0.5, momentum=0.5)  # OneCycleLR changes momentum as well
        scheduler = SCHEDULES[name](optimizer) if built == "before" else None
        rates, lengths = [], []
        with multiplied_learning_rate(optimizer, factor):
            scheduler = scheduler or SCHEDULES[name](optimizer)
            for _ in range(7):
                lengths += step(optimizer)
                scheduler.step(*([1.0] if name == "plateau" else []))
                rates.append(optimizer.param_groups[0]["lr"])
        return rates, lengths

    rates, lengths = run(1.0)
    multiplied_rates, multiplied_lengths = run(FACTOR)
    assert multiplied_rates == rates
    assert len(set(rates)) > 2
    assert multiplied_lengths == pytest.approx([FACTOR * length for length in lengths], rel=1e-5)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_groups_may_share_a_tensor_as_their_rate(options: dict[str, Any]) -> None:
    rate = torch.tensor(0.5)
    groups = [{"params": [parameter]} for parameter in parameters(0.0, 0.0)]
    optimizer = SGD(groups, rate, **options)
    with multiplied_learning_rate(optimizer, FACTOR):
        assert step(optimizer) == [0.125, 0.125]
        rate.fill_(1.0)  # as schedulers do
        assert step(optimizer) == [0.25, 0.25]
    assert all(group["lr"] is rate for group in optimizer.param_groups)
    assert rate == 1.0


def test_decoupled_weight_decay_is_multiplied_with_the_rate() -> None:
    """AdamW subtracts rate times decay times weight, so the factor applies to the decay."""
    optimizer = AdamW(parameters(1.0), 0.5, weight_decay=0.5)
    with multiplied_learning_rate(optimizer, FACTOR):
        assert step(optimizer, gradient=0.0) == [0.125 * 0.5]


# Closures and exceptions


def _closure(optimizer: Optimizer, seen: list[float]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        loss: Tensor = sum(p.square().sum() for p in optimizer.param_groups[0]["params"]) / 2
        loss.backward()
        return loss

    return closure


def test_a_closure_sees_the_rate_without_the_factor() -> None:
    """Lightning runs training_step in a closure, where users may log the rate."""
    optimizer, seen = SGD(parameters(1.0), 0.5), []
    with multiplied_learning_rate(optimizer, FACTOR):
        loss = optimizer.step(_closure(optimizer, seen))
        optimizer.step(closure=_closure(optimizer, seen))
    assert loss == 0.5
    assert seen == [0.5, 0.5]
    assert optimizer.param_groups[0]["params"][0].item() == pytest.approx((1 - 0.125) ** 2)


def test_lbfgs_steps_at_the_multiplied_rate() -> None:
    optimizer, seen = LBFGS(parameters(1.0), 1.0, max_iter=1), []
    with multiplied_learning_rate(optimizer, FACTOR):
        optimizer.step(_closure(optimizer, seen))
    assert seen == [1.0]
    assert optimizer.param_groups[0]["params"][0].item() == 0.75  # Newton's step would be to 0
    several, seen = LBFGS(parameters(1.0), 1.0, max_iter=4), []
    with multiplied_learning_rate(several, FACTOR):
        several.step(_closure(several, seen))
    assert seen == [1.0] * 4


def test_a_rate_set_in_the_closure_applies_to_the_same_step() -> None:
    optimizer = SGD(parameters(1.0), 0.5)

    def closure() -> Tensor:
        optimizer.param_groups[0]["lr"] = 1.0
        return _closure(optimizer, [])()

    with multiplied_learning_rate(optimizer, FACTOR):
        optimizer.step(closure)
        assert optimizer.param_groups[0]["lr"] == 1.0
    assert optimizer.param_groups[0]["params"][0].item() == 0.75


def _raising() -> Tensor:
    raise RuntimeError("mine")


def test_an_exception_in_the_closure_leaves_the_rate_unchanged() -> None:
    optimizer = SGD(parameters(), 0.5)
    with multiplied_learning_rate(optimizer, FACTOR):
        with pytest.raises(RuntimeError, match="mine"):
            optimizer.step(_raising)
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert step(optimizer) == [0.125]
        with pytest.raises(RuntimeError, match="mine"):
            optimizer.step(_raising)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_an_exception_in_the_step_does_not_affect_later_steps() -> None:
    optimizer = SparseAdam(parameters(0.0), 0.5)
    (parameter,) = optimizer.param_groups[0]["params"]

    def sparse_step() -> float:
        before = parameter.item()
        parameter.grad = torch.ones(1).to_sparse()
        optimizer.step()
        return before - parameter.item()

    with multiplied_learning_rate(optimizer, FACTOR):
        with pytest.raises(RuntimeError, match="does not support dense gradients"):
            step(optimizer)
        assert sparse_step() == pytest.approx(0.125)
        assert optimizer.param_groups[0]["lr"] == 0.5
        with pytest.raises(RuntimeError, match="does not support dense gradients"):
            step(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert sparse_step() == pytest.approx(0.5)


def test_a_rate_set_after_a_failed_step_stays() -> None:
    optimizer = SparseAdam(parameters(0.0), 0.5)
    with multiplied_learning_rate(optimizer, FACTOR):
        with pytest.raises(RuntimeError, match="does not support dense gradients"):
            step(optimizer)
        optimizer.param_groups[0]["lr"] = 2.0
    assert optimizer.param_groups[0]["lr"] == 2.0


class Decaying(SGD):
    """A user's optimiser that changes parameters before torch's own step."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            with torch.no_grad():
                for parameter in group["params"]:
                    parameter.mul_(1 - group["lr"])
        return super().step(closure)


def test_a_step_that_calls_its_base_classs_step_is_multiplied_only_once() -> None:
    SGD(parameters(), 0.5)  # torch adds hooks to a class's step when it is first instantiated
    optimizer = Decaying(parameters(1.0), 0.5)
    with multiplied_learning_rate(optimizer, FACTOR):
        assert step(optimizer) == [0.125 + 0.125]
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("steps", [0, 1])
def test_a_block_without_a_step_logs_a_warning(
    steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Another optimiser may take the steps, such as the base optimiser of SAM."""
    optimizer = SGD(parameters(), 0.5)
    with multiplied_learning_rate(optimizer, FACTOR):
        step(optimizer if steps else SGD(optimizer.param_groups[0]["params"], 0.5))
    assert ("had no effect: the SGD passed to local_training took no step" in caplog.text) == (
        steps == 0
    )


# Entering


def test_a_factor_of_one_does_not_change_the_optimizer() -> None:
    optimizer = SGD(parameters(), 0.5)
    with multiplied_learning_rate(optimizer, 1.0):
        assert not optimizer._optimizer_step_pre_hooks
    with multiplied_learning_rate(optimizer, FACTOR):
        assert optimizer._optimizer_step_pre_hooks


class Rateless(Optimizer):
    def __init__(self, trained: list[nn.Parameter]) -> None:
        super().__init__(trained, {"lr": None})

    def step(self, closure: Any = None) -> None: ...


def test_a_group_without_a_rate_fails() -> None:
    with (
        pytest.raises(ConfigError, match=r"factor=0\.25 .*Rateless has lr=None"),
        multiplied_learning_rate(Rateless(parameters()), FACTOR),
    ):
        pytest.fail("entered")


# torch.compile


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch's compiler
@pytest.mark.parametrize("rate", [0.5, torch.tensor(0.5)], ids=["number", "tensor"])
@pytest.mark.parametrize("when", ["before", "inside"])
def test_a_compiled_step_uses_the_multiplied_rate(when: str, rate: float | Tensor) -> None:
    optimizer = SGD(parameters(0.0), rate)
    compiled: Any = None

    def length() -> float:
        (parameter,) = optimizer.param_groups[0]["params"]
        before = parameter.item()
        parameter.grad = torch.ones(1)
        compiled()
        return before - parameter.item()

    if when == "before":
        compiled = torch.compile(optimizer.step, backend="eager")
        assert length() == 0.5
    with multiplied_learning_rate(optimizer, FACTOR):
        compiled = compiled or torch.compile(optimizer.step, backend="eager")
        assert [length(), length()] == [0.125, 0.125]
        assert optimizer.param_groups[0]["lr"] == 0.5
    assert length() == 0.5
    with multiplied_learning_rate(optimizer, FACTOR):
        assert length() == 0.125
    assert optimizer.param_groups[0]["lr"] == 0.5
