"""ResNet-20 for images of 32x32 pixels, and residual networks of other sizes.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385, section 4.2, with shortcuts without parameters (option A). The
network without normalisation, which would hardly train otherwise, follows H. Zhang,
Y. N. Dauphin, T. Ma, "Fixup Initialization: Residual Learning Without Normalization", ICLR 2019,
https://arxiv.org/abs/1901.09321.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from fixbn_flwr.models.norm import Normaliser, normaliser


def _convolution(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    convolution = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    """Return option A: every `stride`-th pixel, with appended channels of zeros."""
    return pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, channels - x.shape[1]))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each followed by a normalisation, and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Normaliser) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        self.conv1 = _convolution(channels_in, channels, stride)
        self.norm1 = norm(channels)
        self.conv2 = _convolution(channels, channels)
        self.norm2 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, channels_in, h, w]` to `[n, channels, h / stride, w / stride]`."""
        branch = relu(self.norm1(self.conv1(x)))
        branch = self.norm2(self.conv2(branch))
        return relu(branch + _shortcut(x, self.channels, self.stride))


class Bias(nn.Module):
    """A trained scalar that is added to every value."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Map a tensor to one of the same shape."""
        return x + self.bias


class FixUpBlock(nn.Module):
    """A basic block with scalar biases and a scalar multiplier instead of normalisation.

    `depth` is the number of blocks in the network, FixUp's L. The branch has m = 2 convolutions.
    The last one starts at zero and the first is scaled by L^(-1 / (2m - 2)), so the change of the
    network's output by one SGD step does not grow with the depth.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, depth: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        self.before_conv1, self.before_relu1 = Bias(), Bias()
        self.before_conv2, self.before_sum = Bias(), Bias()
        self.multiplier = nn.Parameter(torch.ones(1))
        self.conv1 = _convolution(channels_in, channels, stride)
        self.conv2 = _convolution(channels, channels)
        with torch.no_grad():
            self.conv1.weight.mul_(depth**-0.5)
            self.conv2.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, channels_in, h, w]` to `[n, channels, h / stride, w / stride]`."""
        x = self.before_conv1(x)
        branch = relu(self.before_relu1(self.conv1(x)))
        branch = self.before_sum(self.multiplier * self.conv2(self.before_conv2(branch)))
        return relu(branch + _shortcut(x, self.channels, self.stride))


class ResidualNetwork(nn.Module):
    """A convolution, stages of residual blocks, global average pooling and a linear classifier.

    Weights are drawn from torch's global generator.

    Args:
        channels_in: The channels of an image.
        classes: The number of outputs.
        widths: The channels of each stage. Every stage but the first halves height and width.
        blocks: The number of residual blocks in each stage.
        norm: The normalisation, see `fixbn_flwr.models.norm.normaliser`; "none" is FixUp.

    Raises:
        ConfigError: If the normalisation does not exist, or its groups do not divide the widths.
    """

    def __init__(
        self, channels_in: int, classes: int, widths: Sequence[int], blocks: int, norm: str
    ) -> None:
        super().__init__()
        make_norm = normaliser(norm)
        fixup = norm == "none"
        self.conv = _convolution(channels_in, widths[0])
        self.norm = Bias() if fixup else make_norm(widths[0])
        self.blocks = nn.Sequential()
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                self.blocks.append(
                    FixUpBlock(before, width, stride, depth=blocks * len(widths))
                    if fixup
                    else BasicBlock(before, width, stride, make_norm)
                )
                before = width
        self.before_classifier = Bias() if fixup else nn.Identity()
        self.classifier = nn.Linear(before, classes)
        if fixup:
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[n, channels_in, height, width]` to logits `[n, classes]`."""
        features: Tensor = self.blocks(relu(self.norm(self.conv(images)))).mean((2, 3))
        logits: Tensor = self.classifier(self.before_classifier(features))
        return logits


def resnet20(norm: str = "bn", *, classes: int = 10) -> ResidualNetwork:
    """Build the 20-layer network for 32x32 colour images, with 0.27 million parameters."""
    return ResidualNetwork(3, classes, widths=(16, 32, 64), blocks=3, norm=norm)
