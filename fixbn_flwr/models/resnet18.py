"""ResNet-18 for images of 64x64 pixels: torchvision's network with another stem.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385. The paper's stem for ImageNet, a 7x7 convolution and a
max-pooling layer, each with stride 2, would reduce such an image to 2x2 pixels in the last stage.
So the stem is the paper's stem for small images (section 4.2), a 3x3 convolution with stride 1, and
the stages have maps of 64, 32, 16 and 8 pixels per side.
"""

from __future__ import annotations

from torch import nn

from fixbn_flwr.models.norm import normaliser
from fixbn_flwr.models.resnet20 import ResidualNetwork


def resnet18(norm: str = "bn", *, classes: int = 200) -> nn.Module:
    """Build the 18-layer network for colour images of 64x64 pixels, with 11.3 million parameters.

    Without normalisation it is a FixUp network of the same depth and widths, as in `resnet20.py`.
    Its shortcuts have no parameters, whereas torchvision's have a convolution.

    Args:
        norm: The normalisation, see `fixbn_flwr.models.norm.normaliser`.
        classes: The number of outputs.

    Raises:
        ConfigError: If the normalisation does not exist, or its groups do not divide the widths.
    """
    make_norm = normaliser(norm)
    if norm == "none":
        return ResidualNetwork(3, classes, widths=(64, 128, 256, 512), blocks=2, norm=norm)
    from torchvision.models.resnet import BasicBlock, ResNet

    network: nn.Module = ResNet(BasicBlock, [2, 2, 2, 2], classes, norm_layer=make_norm)
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as in torchvision
    network.conv1, network.maxpool = stem, nn.Identity()
    return network
