"""FedWon: scaled weights, and networks without normalisation."""

import pytest
import torch
from torch import nn

from fixbn_flwr.method.batch_norm import statistics_layers
from simulation.experiments.small_tasks import resnet8
from simulation.peers.fedwon import RELU_GAIN, ScaledWeightConv2d, without_normalisation


def test_weights_have_mean_0_and_variance_of_the_gain_squared_by_fan_in():
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    with torch.no_grad():
        plain.weight.mul_(7).add_(3)
    weight = ScaledWeightConv2d(plain).scaled_weight()

    assert weight.mean((1, 2, 3)).tolist() == pytest.approx([0.0] * 6, abs=1e-6)
    # ReLU's gain squared is 2 / (1 - 1/pi) = 2.9338; the fan-in is 4 x 9.
    variance = weight.var((1, 2, 3), correction=0)
    assert variance.tolist() == pytest.approx([2.93377 / 36] * 6, rel=1e-4)


def test_the_gain_restores_the_variance_that_relu_removes():
    x = torch.relu(torch.randn(10**6, generator=torch.Generator().manual_seed(0)))

    assert pytest.approx(1.71286, abs=1e-5) == RELU_GAIN
    assert float(x.var()) * RELU_GAIN**2 == pytest.approx(1.0, abs=0.01)


def test_a_layer_keeps_geometry_and_has_a_bias():
    plain = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    scaled = ScaledWeightConv2d(plain)
    x = torch.ones(1, 4, 8, 8)

    assert scaled(x).shape == plain(x).shape == (1, 6, 4, 4)
    assert scaled.weight is plain.weight
    names = {name: tuple(p.shape) for name, p in scaled.named_parameters()}
    assert names == {"weight": (6, 2, 3, 3), "bias": (6,), "gain": (6, 1, 1, 1)}
    with torch.no_grad():
        scaled.gain.zero_()
        scaled.bias.fill_(2.5)
    assert scaled(x).unique().tolist() == [2.5]


def test_a_network_has_no_statistics_and_an_output_of_moderate_size():
    torch.manual_seed(0)
    model = without_normalisation(resnet8())

    assert not statistics_layers(model)
    assert sum(isinstance(m, ScaledWeightConv2d) for m in model.modules()) == 7
    assert not any(type(m) is nn.Conv2d for m in model.modules())
    images = torch.randn(4, 3, 32, 32)
    assert 0.01 < model(images).std().item() < 100
    # The same output for an image alone: nothing depends on the batch.
    torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-4)
