"""freeze_statistics on every kind of layer that has running statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fixbn_flwr import freeze_statistics
from fixbn_flwr.errors import ConfigError, NoStatisticsError
from fixbn_flwr.method.batch_norm import statistics
from fixbn_flwr.method.freezable_layers import check_freezable
from tests.support.batch_norm import network, rows, statistics_unchanged


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (3, 4)),
        (nn.BatchNorm1d(4), (3, 4, 5)),
        (nn.BatchNorm2d(4), (3, 4, 5, 5)),
        (nn.BatchNorm3d(4), (3, 4, 5, 5, 5)),
        (nn.SyncBatchNorm(4), (3, 4, 5, 5)),
        (nn.BatchNorm2d(4, momentum=None), (3, 4, 5, 5)),
        (nn.BatchNorm2d(4, affine=False), (3, 4, 5, 5)),
        (nn.InstanceNorm1d(4, track_running_stats=True), (3, 4, 5)),
        (nn.InstanceNorm2d(4, track_running_stats=True, affine=True), (3, 4, 5, 5)),
        (nn.InstanceNorm3d(4, track_running_stats=True), (3, 4, 5, 5, 5)),
    ],
)
def test_every_layer_of_torch_with_running_statistics_freezes(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    layer.running_mean.fill_(0.5)
    x = 2 + torch.randn(shape)
    expected = copy.deepcopy(layer).eval()(x)
    before = statistics(layer)
    own_class = type(layer)
    with freeze_statistics(layer):
        torch.testing.assert_close(layer.train()(x), expected)
    assert statistics_unchanged(layer, before)
    assert type(layer) is own_class
    layer.train()(x)
    assert not statistics_unchanged(layer, before)


class Block(nn.BatchNorm2d):
    """A user's subclass with its own forward, children, attribute and constructor."""

    def __init__(self, channels: int, *, gain: float) -> None:
        super().__init__(channels)
        self.gain = gain
        self.inner = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        assert self.dropout.training  # set by model.train()
        return self.gain * self.dropout(self.inner(super().forward(x)))


def test_a_subclass_with_its_own_forward_and_children_freezes() -> None:
    model = nn.Sequential(Block(3, gain=2.0))
    x = torch.randn(2, 3, 4, 4)
    before = statistics(model)
    assert len(before) == 4
    with freeze_statistics(model):
        model.train()
        assert not torch.equal(model(x), model(x))  # its dropout is active
        twin = copy.deepcopy(model)
        assert isinstance(model[0], Block)
        assert model[0].gain == 2.0
    assert statistics_unchanged(model, before)
    assert type(model[0]) is type(twin[0]) is Block
    model(x)
    assert not statistics_unchanged(model, before)


def test_an_uninitialized_lazy_layer_fails_with_the_remedy() -> None:
    model = nn.Sequential(nn.LazyBatchNorm1d())
    with (
        pytest.raises(
            NoStatisticsError,
            match=r"'0' is an uninitialized LazyBatchNorm1d.*load the global arrays",
        ),
        freeze_statistics(model),
    ):
        pytest.fail("entered")
    assert type(model[0]) is nn.LazyBatchNorm1d


@pytest.mark.parametrize("loaded", [True, False])
def test_a_lazy_layer_is_frozen_once_it_has_statistics(loaded: bool) -> None:
    """A layer loaded from the server changes its class at the first batch, but stays frozen."""
    model = nn.Sequential(nn.LazyBatchNorm1d())
    if loaded:
        model.load_state_dict(nn.Sequential(nn.BatchNorm1d(4)).state_dict())
    else:
        model(rows())
    before = statistics(model)
    with freeze_statistics(model):
        model.train()
        torch.testing.assert_close(model(rows()[:1]), model(rows())[:1])
    assert statistics_unchanged(model, before)
    assert type(model[0]) is nn.BatchNorm1d
    model(rows())
    assert not statistics_unchanged(model, before)


def test_a_layer_used_under_two_names_is_frozen_once_and_thawed() -> None:
    layer = nn.BatchNorm1d(4)
    model = nn.ModuleDict({"a": layer, "b": layer})
    with freeze_statistics(model):
        assert not layer.training
    assert type(layer) is nn.BatchNorm1d


def test_names_are_those_of_the_state_dict() -> None:
    model = nn.ModuleDict({"stem": network(), "head": nn.BatchNorm2d(2)})
    expected = {name for name in model.state_dict() if "running_" in name}
    assert statistics(model).keys() == expected
    assert statistics(nn.BatchNorm1d(2)).keys() == {"running_mean", "running_var"}


class VarianceAlone(nn.Module):
    """As EvoNorm-B0 of timm: a running variance and no mean. The server freezes it by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.running_var: Tensor
        self.register_buffer("running_var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_var.lerp_(x.var(0), 0.1)
        return x / self.running_var.sqrt()


def test_a_layer_with_a_variance_alone_is_frozen_too() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), VarianceAlone())
    check_freezable(model)
    before = statistics(model)
    assert list(before) == ["0.running_mean", "0.running_var", "1.running_var"]
    with freeze_statistics(model):
        model.train()(rows())
    assert statistics_unchanged(model, before)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_scripted_layer_is_refused() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    with (
        pytest.raises(ConfigError, match=r"'1' was compiled with torch\.jit\.script.*afterwards"),
        freeze_statistics(model),
    ):
        pytest.fail("entered")
