"""Residual networks: their sizes, and FixUp's initial values."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.norm import NORMS
from fixbn_flwr.models.resnet20 import BasicBlock, FixUpBlock, resnet20
from fixbn_flwr.models.small_resnet import small_resnet


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# 267,696 weights of convolutions and 650 of the classifier. In addition, either 1,376 scales and
# shifts of 19 layers, or 1 bias of the stem, 5 scalars in each of 9 blocks and 1 bias before the
# classifier.
@pytest.mark.parametrize(
    ("norm", "expected"),
    [("bn", 269_722), ("gn", 269_722), ("ln", 269_722), ("in", 269_722), ("none", 268_393)],
)
def test_resnet20_has_the_expected_number_of_parameters(norm: str, expected: int) -> None:
    assert parameters(resnet20(norm)) == expected


def test_resnet20_has_20_layers() -> None:
    layers = [m for m in resnet20().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 20


@pytest.mark.parametrize("norm", NORMS)
def test_feature_maps_shrink_by_stage(norm: str) -> None:
    model, shapes = resnet20(norm), []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, out: shapes.append(out.shape[1:]))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


@pytest.mark.parametrize("norm", ["gn", "gn8"])
def test_all_19_normalisation_layers_have_the_requested_groups(norm: str) -> None:
    groups = [m.num_groups for m in resnet20(norm).modules() if isinstance(m, nn.GroupNorm)]
    assert groups == [8 if norm == "gn8" else 2] * 19


@pytest.mark.parametrize("build", [resnet20, small_resnet])
def test_groups_that_do_not_divide_the_widths_are_refused(
    build: Callable[[str], nn.Module],
) -> None:
    with pytest.raises(ConfigError, match=r"norm is 'gn32', but a layer .* has 16 channels"):
        build("gn32")


@pytest.mark.parametrize(("norm", "expected"), [("bn", 19_130), ("gn8", 19_130), ("none", 18_918)])
def test_small_resnet_has_the_expected_number_of_parameters(norm: str, expected: int) -> None:
    model = small_resnet(norm)
    assert parameters(model) == expected
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_convolutions_use_he_initialisation() -> None:
    torch.manual_seed(0)
    block = resnet20().blocks[6]
    assert isinstance(block, BasicBlock)
    assert block.conv1.weight.shape == (64, 32, 3, 3)
    assert block.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.01)


def test_the_shortcut_subsamples_and_appends_zeros() -> None:
    block = BasicBlock(1, 2, 2, nn.BatchNorm2d)
    nn.init.zeros_(block.conv2.weight)  # only the shortcut remains
    image = torch.arange(16.0).view(1, 1, 4, 4)
    expected = torch.tensor([[[[0.0, 2.0], [8.0, 10.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    assert torch.equal(block(image), expected)


def test_a_fixup_block_initially_equals_the_shortcut() -> None:
    block = FixUpBlock(2, 2, 1, depth=4)
    image = torch.rand(1, 2, 3, 3)
    assert torch.equal(block(image), image)


def test_fixup_scales_the_first_convolution_by_the_depth() -> None:
    torch.manual_seed(0)
    alone = FixUpBlock(2, 2, 1, depth=1)
    torch.manual_seed(0)
    deep = FixUpBlock(2, 2, 1, depth=4)
    torch.testing.assert_close(deep.conv1.weight, alone.conv1.weight / 2)


def test_fixup_initially_predicts_uniformly_and_all_its_parameters_train() -> None:
    torch.manual_seed(0)
    model = small_resnet("none")
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    images, targets = torch.randn(20, 1, 8, 8), torch.arange(20) % 3
    for step in range(3):  # changes the classifier, then the last convolutions, then the rest
        loss = nn.functional.cross_entropy(model(images), targets)
        if step == 0:
            assert loss.item() == pytest.approx(math.log(10))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    assert [n for n, value in model.named_parameters() if torch.equal(value, before[n])] == []
