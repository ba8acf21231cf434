from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fixbn_flwr.method.gradient_comparison import compare_gradients


class Scale(nn.Module):
    """One weight before batch normalization, whose gradients can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.norm = nn.BatchNorm1d(1, affine=False, eps=1e-12).double()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.weight * x)
        return y


def test_batch_statistics_hide_a_scale_from_the_gradient() -> None:
    """Normalized by its own batch, the output does not depend on the scale: the gradient is 0."""
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    target = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    model = Scale()
    assert compare_gradients(model, lambda: model(x).sum() * 0.0) is None
    compared = compare_gradients(model, lambda: (model(x) - target).square().sum())
    assert compared is not None
    assert compared.norm_ratio == pytest.approx(0.0, abs=1e-6)


def test_equal_statistics_give_equal_gradients_except_for_their_own_part() -> None:
    """Behind the last normalisation the two passes are the same."""
    torch.manual_seed(0)
    x = torch.randn(64, 3, dtype=torch.float64)
    norm = nn.BatchNorm1d(3, eps=1e-12).double()
    with torch.no_grad():
        norm.running_mean.copy_(x.mean(0))  # type: ignore[union-attr]
        norm.running_var.copy_(x.var(0, unbiased=False))  # type: ignore[union-attr]
    model = nn.Sequential(norm, nn.Linear(3, 2).double())
    compared = compare_gradients(model, lambda: model(x).square().sum())
    assert compared is not None
    assert (compared.cosine, compared.norm_ratio) == (pytest.approx(1.0), pytest.approx(1.0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)
    )


def test_nothing_of_the_model_changes_nor_the_random_numbers() -> None:
    model = network().eval()
    model[0].train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    compared = compare_gradients(model, lambda: model(x).square().sum())
    assert torch.equal(torch.rand(1), expected)
    assert compared is not None
    assert -1 < compared.cosine < 1
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [m.training for m in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_both_passes_drop_the_same_units() -> None:
    """With statistics that match the batch, only other dropout masks could make a difference."""
    drop = nn.Dropout(0.5)
    norm = nn.BatchNorm1d(4, eps=1e-12).double()
    x = torch.randn(32, 4, dtype=torch.float64)
    with torch.no_grad():
        norm.running_mean.copy_(x.mean(0))  # type: ignore[union-attr]
        norm.running_var.copy_(x.var(0, unbiased=False))  # type: ignore[union-attr]
    model = nn.Sequential(norm, drop, nn.Linear(4, 1).double())
    compared = compare_gradients(model, lambda: model(x).sum())
    assert compared is not None
    assert compared.cosine == pytest.approx(1.0)


def test_an_error_in_the_loss_leaves_the_model_as_it_was() -> None:
    model = network().eval()
    before = copy.deepcopy(model.state_dict())

    def loss() -> Tensor:
        model(torch.ones(8, 4))
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        compare_gradients(model, loss)
    assert not model[1].training
    assert all(torch.equal(before[name], after) for name, after in model.state_dict().items())


class Assigning(nn.Module):
    """Batch normalization written by hand, which assigns new tensors to its statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running_mean = x.mean(0).detach()
            self.running_var = x.var(0).detach()
        return (x - self.running_mean) / self.running_var.sqrt()


def test_statistics_that_a_layer_assigns_are_restored() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), Assigning(), nn.Linear(8, 2)), torch.randn(16, 4)
    buffers = dict(model.named_buffers())
    assert compare_gradients(model, lambda: model(x).square().sum()) is not None
    assert all(buffers[name] is after for name, after in model.named_buffers())
    assert torch.equal(model[1].running_var, torch.ones(8))


def test_a_buffer_that_is_an_expanded_view_is_left_as_it_is() -> None:
    model = network()
    model.register_buffer("mask", torch.ones(1).expand(4))
    assert compare_gradients(model, lambda: model(torch.randn(8, 4)).square().sum()) is not None
    assert model.mask.tolist() == [1.0] * 4


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_there_is_no_angle_without_two_finite_gradients(value: float) -> None:
    model, x = network(), torch.randn(8, 4)
    assert compare_gradients(model, lambda: model(x).sum() * value) is None


def test_a_model_without_statistics_has_nothing_to_compare() -> None:
    model, x = nn.Linear(4, 2), torch.randn(8, 4)
    assert compare_gradients(model, lambda: model(x).sum()) is None


def test_a_model_without_trained_parameters_has_nothing_to_compare() -> None:
    model, x = network().requires_grad_(False), torch.randn(8, 4)
    assert compare_gradients(model, lambda: model(x).square().sum()) is None


def test_a_sparse_gradient_counts_like_a_dense_one() -> None:
    def compared(*, sparse: bool) -> object:
        torch.manual_seed(0)
        words = nn.Embedding(10, 4, sparse=sparse)
        model = nn.Sequential(words, nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 2))
        x = torch.arange(12).reshape(6, 2) % 10
        return compare_gradients(model, lambda: model(x).square().sum())

    assert compared(sparse=True) == compared(sparse=False) is not None
