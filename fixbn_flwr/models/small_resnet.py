"""The network of digits and FEMNIST: residual, and small enough to train on a CPU in seconds."""

from __future__ import annotations

from fixbn_flwr.models.resnet20 import ResidualNetwork


def small_resnet(norm: str = "bn", *, classes: int = 10) -> ResidualNetwork:
    """Two stages of one block, 16 and 32 channels, for small grey images."""
    return ResidualNetwork(1, classes, widths=(16, 32), blocks=1, norm=norm)
