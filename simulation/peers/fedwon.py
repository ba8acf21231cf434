"""FedWon: no normalisation of features; the weights of convolutions are standardised instead.

W. Zhuang, L. Lyu, "FedWon: Triumphing Multi-domain Federated Learning Without Normalization",
ICLR 2024, https://arxiv.org/abs/2306.05879. It removes all normalisation layers and reparameterises
convolutions with the scaled weight standardisation of A. Brock, S. De, S. L. Smith, "Characterizing
signal propagation to close the performance gap in unnormalized ResNets", ICLR 2021,
https://arxiv.org/abs/2101.08692.

Simplified: only what the abstract of FedWon says, so no gradients are clipped and residual branches
have no scale of their own. Convolutions have the trained gain and bias of Brock et al. per channel,
in place of the scale and shift of the normalisation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from simulation.peers.layers import replace_layers

# ReLU maps N(0, 1) to a distribution with variance (1 - 1/pi) / 2; the gain restores variance 1.
RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
EPS = 1e-4


class ScaledWeightConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance gain^2 / fan-in in each output channel.

    Args:
        like: A convolution, whose weights and geometry it takes.
    """

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__(
            like.in_channels, like.out_channels, like.kernel_size, like.stride,  # type: ignore[arg-type]
            like.padding, like.dilation, like.groups, padding_mode=like.padding_mode,  # type: ignore[arg-type]
        )  # fmt: skip
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        self.weight = like.weight
        self.gain = nn.Parameter(torch.ones(like.out_channels, 1, 1, 1))

    def scaled_weight(self) -> Tensor:
        """Return the weights that the convolution uses, `[out, in / groups, height, width]`."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        fan_in = self.weight[0].numel()
        scale = torch.rsqrt(torch.clamp(variance * fan_in, min=EPS))
        scaled: Tensor = (self.weight - mean) * scale * (self.gain * RELU_GAIN)
        return scaled

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, in, h, w]` to `[n, out, h', w']`."""
        y: Tensor = self._conv_forward(x, self.scaled_weight(), self.bias)
        return y


def without_normalisation(model: nn.Module) -> nn.Module:
    """Standardise the weights of all convolutions of a model, and remove batch normalisation."""

    def make(layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.BatchNorm2d):
            return nn.Identity()
        return ScaledWeightConv2d(layer) if type(layer) is nn.Conv2d else None

    return replace_layers(model, make)
