"""HBN: the layer is BN at one end of its factor and uses global statistics at the other."""

import numpy as np
import pytest
import torch
from torch import nn

from simulation.peers.hbn import HybridBatchNorm2d, measure, with_hybrid_normalisation
from tests.simulation.peers.peer_clients import client, initial, reply_of, trained_model

INFINITY = float("inf")


def layers(factor: float) -> tuple[HybridBatchNorm2d, nn.BatchNorm2d]:
    hybrid, plain = HybridBatchNorm2d(3), nn.BatchNorm2d(3)
    for layer in (hybrid, plain):
        layer.weight.data.copy_(torch.tensor([1.0, 2.0, 0.5]))
        layer.bias.data.copy_(torch.tensor([0.0, -1.0, 3.0]))
        layer.running_mean.copy_(torch.tensor([0.5, -0.5, 1.0]))
        layer.running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
    hybrid.distribution_factor.data.fill_(factor)
    return hybrid, plain


X = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1


def test_with_a_of_1_a_layer_is_batch_normalisation_and_keeps_the_statistics():
    hybrid, plain = layers(INFINITY)

    torch.testing.assert_close(hybrid(X), plain(X))
    assert hybrid.running_mean.tolist() == [0.5, -0.5, 1.0]
    assert hybrid.running_var.tolist() == [4.0, 0.25, 1.0]


def test_with_a_of_0_and_in_evaluation_a_layer_uses_the_global_statistics():
    hybrid, plain = layers(-INFINITY)
    expected = plain.eval()(X)

    torch.testing.assert_close(hybrid(X), expected)
    torch.testing.assert_close(layers(0.0)[0].eval()(X), expected)


def test_half_way_the_statistics_are_their_mean_and_the_factor_has_a_gradient():
    hybrid = HybridBatchNorm2d(1)
    hybrid.running_mean.fill_(4.0)
    hybrid.running_var.fill_(15.0)
    x = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)  # mean 0, variance 1

    y = hybrid(x)  # by mean 2, variance 8
    torch.testing.assert_close(y.flatten(), torch.tensor([-3.0, -1.0]) / (8 + 1e-5) ** 0.5)
    y.sum().backward()
    # With da/df = 1/4: the mean moves by -1 and the variance by -3.5, so the sum -2 mean / root of
    # the variance by 2 / 8^(1/2) - 7 / 8^(3/2).
    assert hybrid.distribution_factor.grad.item() == pytest.approx(0.39775, abs=1e-4)


def test_a_measurement_is_of_the_inputs_of_each_layer():
    model = with_hybrid_normalisation(nn.Sequential(nn.Identity(), nn.BatchNorm2d(3)))
    found = measure(model, X)

    assert list(found) == ["1.running_mean", "1.running_var"]
    np.testing.assert_allclose(found["1.running_mean"], X.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["1.running_var"], X.var((0, 2, 3), correction=0), rtol=1e-5)


def test_a_client_returns_statistics_of_the_received_model_and_keeps_its_factors():
    made, sent = client("hbn"), initial("hbn")
    replied = reply_of(made, sent)
    trained = trained_model(made)

    factors = [name for name in sent if "factor" in name]
    assert len(factors) == 5
    for name in factors:
        assert not np.array_equal(trained[name], sent[name])
        np.testing.assert_array_equal(replied[name], sent[name])
    # Whatever the training does, the statistics are those of the received model.
    again = reply_of(client("hbn", **{"learning-rate": 0.001}), sent)
    for name in (n for n in sent if "running" in n):
        assert not np.array_equal(replied[name], sent[name])
        np.testing.assert_array_equal(replied[name], again[name])
        np.testing.assert_array_equal(trained[name], sent[name])
