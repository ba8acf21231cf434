"""BN with exact statistics: in evaluation it gives what training gives on the same images."""

import torch
from torch import nn

from simulation.peers.exact_statistics import set_exact_statistics

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 + 1


def test_the_statistics_are_those_of_each_layers_input_after_exact_layers():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5, momentum=None)
    )
    set_exact_statistics(model, X)

    first, _, _, last = model
    assert (first.momentum, last.momentum) == (0.1, None)
    torch.testing.assert_close(first.running_mean, X.mean((0, 2, 3)))
    torch.testing.assert_close(first.running_var, X.var((0, 2, 3)))
    torch.testing.assert_close(last.running_mean, model[:3](X).mean((0, 2, 3)))
    # Evaluation differs from training by the divisors n and n - 1 of the variance only.
    torch.testing.assert_close(model.eval()(X), model.train()(X), rtol=1e-3, atol=1e-3)
