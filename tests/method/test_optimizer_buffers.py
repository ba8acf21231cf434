from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

from fixbn_flwr.errors import MomentumError
from fixbn_flwr.method.optimizer_buffers import read_buffers, read_momentum, write_buffers

Build = Callable[[Any], Optimizer]
OPTIMISERS: dict[str, Build] = {
    "momentum": lambda p: SGD(p, 0.1, momentum=0.9),
    "nesterov": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "dampening": lambda p: SGD(p, 0.1, momentum=0.9, dampening=0.5),
    "no momentum": lambda p: SGD(p, 0.1),
    "adam": lambda p: Adam(p, 0.1),
    "amsgrad": lambda p: Adam(p, 0.1, amsgrad=True),
    "fused": lambda p: AdamW(p, 0.1, fused=True),
    "nadam": lambda p: NAdam(p, 0.1),
    "rmsprop": lambda p: RMSprop(p, 0.1, momentum=0.9, centered=True),
}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))  # 0-d, like a step count

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.conv(x)).mean((2, 3))) * self.scale
        return y


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def train(model: nn.Module, optimizer: Optimizer, *steps: int) -> None:
    for step in steps:
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_new_optimiser_continues_bit_for_bit(name: str) -> None:
    """Buffers are matched by name, across a new model, a new optimiser and reordered parameters."""
    build = OPTIMISERS[name]
    model = network()
    optimizer = build(model.parameters())
    train(model, optimizer, 1, 2, 3)
    buffers = read_buffers(model, optimizer)
    twin = network()
    twin.load_state_dict(model.state_dict())
    reordered = build(list(twin.parameters())[::-1])
    train(twin, reordered, 9)  # state of another client
    twin.load_state_dict(model.state_dict())
    write_buffers(twin, reordered, buffers)
    train(model, optimizer, 4, 5)
    train(twin, reordered, 4, 5)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_writing_no_buffers_resets_an_optimiser(name: str) -> None:
    build = OPTIMISERS[name]
    model, twin = network(), network()
    used = build(twin.parameters())
    train(twin, used, 1, 2)
    twin.load_state_dict(model.state_dict())
    write_buffers(twin, used, {})
    assert read_buffers(twin, used) == {}
    train(model, build(model.parameters()), 3, 4)
    train(twin, used, 3, 4)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_sgds_buffers_have_the_names_of_the_parameters() -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    assert read_buffers(model, optimizer) == {}
    train(model, optimizer, 1)
    buffers = read_buffers(model, optimizer)
    assert list(buffers) == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(buffers[name], p.grad) for name, p in model.named_parameters())


def test_names_of_adams_buffers_end_with_the_slot() -> None:
    model = network()
    optimizer = Adam(model.parameters())
    train(model, optimizer, 1, 2)
    buffers = read_buffers(model, optimizer)
    assert buffers["conv.weight.step"] == 2
    assert buffers["scale.step"] == 2
    assert {name.rsplit(".", 1)[1] for name in buffers} == {"step", "exp_avg", "exp_avg_sq"}


def test_the_step_of_a_bfloat16_scalar_stays_exact() -> None:
    """bfloat16 represents integers exactly only up to 256."""
    model = network().bfloat16()
    optimizer = Adam(model.parameters())
    train(model.float(), optimizer, 1)
    model.bfloat16()
    buffers = read_buffers(model, optimizer)
    buffers["scale.step"] = torch.tensor(1001.0)
    write_buffers(model, optimizer, buffers)
    assert read_buffers(model, optimizer)["scale.step"].item() == 1001


def test_buffers_are_copied_when_read_and_when_written() -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer, 1)
    buffers = read_buffers(model, optimizer)
    saved = copy.deepcopy(buffers)
    train(model, optimizer, 2)
    assert torch.equal(buffers["head.bias"], saved["head.bias"])
    write_buffers(model, optimizer, buffers)
    train(model, optimizer, 3)
    assert torch.equal(buffers["head.bias"], saved["head.bias"])


def test_buffers_are_contiguous_whatever_the_memory_format() -> None:
    model = network().to(memory_format=torch.channels_last)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer, 1)
    buffers = read_buffers(model, optimizer)
    assert all(buffer.is_contiguous() for buffer in buffers.values())
    write_buffers(model, optimizer, buffers)
    saved = optimizer.state[model.conv.weight]["momentum_buffer"]
    assert saved.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(saved, buffers["conv.weight"])


def test_written_buffers_keep_their_type() -> None:
    """Some optimizers of bfloat16 parameters keep float32 buffers."""
    model = network().bfloat16()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    exact = torch.tensor([1.5, 2.0**-20 + 1])
    write_buffers(model, optimizer, {"head.bias": exact})
    (buffer,) = read_buffers(model, optimizer).values()
    assert buffer.dtype == torch.float32
    assert torch.equal(buffer, exact)


def test_parameters_without_gradient_have_no_buffers() -> None:
    model = network()
    model.norm.requires_grad_(False)
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    unused = nn.Parameter(torch.zeros(2))
    model.register_parameter("unused", unused)
    optimizer.add_param_group({"params": [unused]})
    train(model, optimizer, 1)
    buffers = read_buffers(model, optimizer)
    assert not {"norm.weight", "norm.bias", "unused"} & buffers.keys()
    momentum = read_momentum(model, optimizer)
    assert momentum.keys() == {name for name, _ in model.named_parameters()}
    assert not momentum["norm.weight"].any()
    write_buffers(model, optimizer, momentum)  # zeros for frozen parameters do no harm
    train(model, optimizer, 2)


def test_parameters_outside_the_optimiser_are_left_out() -> None:
    model = network()
    optimizer = SGD(model.head.parameters(), 0.1, momentum=0.9)
    train(model, optimizer, 1)
    assert list(read_momentum(model, optimizer)) == ["head.weight", "head.bias"]


def test_parameter_groups_may_be_in_any_order() -> None:
    model = network()
    groups: list[dict[str, Any]] = [
        {"params": list(model.head.parameters()), "lr": 0.5},
        {"params": [model.scale, *model.conv.parameters()], "momentum": 0.5},
    ]
    optimizer = SGD(groups, 0.1, momentum=0.9)
    train(model, optimizer, 1)
    buffers = read_buffers(model, optimizer)
    assert list(buffers) == ["scale", "conv.weight", "conv.bias", "head.weight", "head.bias"]
    write_buffers(model, optimizer, {name: -buffer for name, buffer in buffers.items()})
    assert torch.equal(optimizer.state[model.head.bias]["momentum_buffer"], -buffers["head.bias"])
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]


def test_tied_weights_have_one_buffer() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    buffers = read_buffers(model, optimizer)
    assert list(buffers) == ["0.weight"]
    write_buffers(model, optimizer, buffers)
    assert list(read_momentum(model, optimizer)) == ["0.weight"]


def test_a_compiled_model_has_the_same_names() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    optimizer = SGD(compiled.parameters(), 0.1, momentum=0.9)
    train(model, optimizer, 1)
    buffers = read_buffers(compiled, optimizer)
    assert buffers.keys() == read_buffers(model, optimizer).keys()
    write_buffers(compiled, optimizer, buffers)
    inner = nn.Sequential(torch.compile(model.conv, backend="eager"))
    names = read_momentum(inner, SGD(inner.parameters(), 0.1, momentum=0.9))
    assert list(names) == ["0.weight", "0.bias"]


WRONG: dict[str, tuple[Tensor, str]] = {
    "neck.weight": (torch.zeros(2, 4), "no parameter of that name"),
    "neck.weight.exp_avg": (torch.zeros(2, 4), "no parameter of that name"),
    "head.weight": (torch.zeros(3, 4), r"\(3, 4\).*\(2, 4\)"),
    "head.weight.exp_avg": (torch.zeros(8), r"\(8,\)"),
    "norm.running_mean": (torch.zeros(4), "no parameter of that name"),
}


@pytest.mark.parametrize("key", WRONG)
def test_buffers_of_another_model_are_refused_and_change_nothing(key: str) -> None:
    buffer, message = WRONG[key]
    model = network()
    optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer, 1)
    before = read_buffers(model, optimizer)
    with pytest.raises(MomentumError, match=message):
        write_buffers(model, optimizer, {"head.bias": torch.ones(2), key: buffer})
    after = read_buffers(model, optimizer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_optimiser_of_another_model_is_refused() -> None:
    optimizer = SGD(network().parameters(), 0.1, momentum=0.9)
    with pytest.raises(MomentumError, match=r"this model's parameters\(\)"):
        read_buffers(network(), optimizer)


def test_global_momentum_supports_only_sgd() -> None:
    model = network()
    optimizer = Adam(model.parameters())
    train(model, optimizer, 1)
    with pytest.raises(MomentumError, match=r"Adam keeps .*average only SGD's momentum"):
        read_momentum(model, optimizer)


def test_an_optimiser_of_a_part_receives_its_own_buffers() -> None:
    """A client that freezes the backbone in a later round continues with the head's momentum."""
    model = network()
    full = SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, full, 1)
    saved = read_buffers(model, full)
    head = SGD([p for n, p in model.named_parameters() if n.startswith("head")], 0.1, momentum=0.9)
    write_buffers(model, head, saved)
    got = read_buffers(model, head)
    assert list(got) == ["head.weight", "head.bias"]
    assert all(torch.equal(got[name], saved[name]) for name in got)
