"""ResNet-18 for Tiny-ImageNet's 64x64 images: torchvision's network with another stem.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385. The paper's stem for ImageNet, a 7x7 convolution and a maximum,
each with stride 2, would leave the last stage 2x2 pixels of an image this small. So the stem is the
one that the paper has for small images (section 4.2): a 3x3 convolution with stride 1 and nothing
behind it, and the stages see 64, 32, 16 and 8 pixels a side.
"""

from __future__ import annotations

from torch import nn

from fixbn_flwr.models.norm import normaliser
from fixbn_flwr.models.resnet20 import ResidualNetwork


def resnet18(norm: str = "bn", *, classes: int = 200) -> nn.Module:
    """The 18-layer network for colour images of 64x64 pixels, 11.3 million parameters.

    Without normalisation it is FixUp's, of the same depth and widths, as in `resnet20.py`: its
    shortcuts have no parameters, where torchvision's have a convolution.

    Args:
        norm: the normalisation, see `fixbn_flwr.models.norm.normaliser`.
        classes: number of outputs.

    Raises:
        ConfigError: there is no such normalisation, or its groups do not divide the widths.
    """
    make_norm = normaliser(norm)
    if norm == "none":
        return ResidualNetwork(3, classes, widths=(64, 128, 256, 512), blocks=2, norm=norm)
    from torchvision.models.resnet import BasicBlock, ResNet

    network: nn.Module = ResNet(BasicBlock, [2, 2, 2, 2], classes, norm_layer=make_norm)
    stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as all the others
    network.conv1, network.maxpool = stem, nn.Identity()
    return network
