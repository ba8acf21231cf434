"""The digits' network: a residual network small enough to train on a CPU in seconds."""

from __future__ import annotations

from fixbn_flwr.models.resnet20 import ResidualNetwork


def small_resnet(norm: str = "bn") -> ResidualNetwork:
    """Two stages of one block, 16 and 32 channels, for grey 8x8 images in 10 classes."""
    return ResidualNetwork(1, 10, widths=(16, 32), blocks=1, norm=norm)
