"""The network of digits and FEMNIST, a residual network that a CPU trains in seconds."""

from __future__ import annotations

from fixbn_flwr.models.resnet20 import ResidualNetwork


def small_resnet(norm: str = "bn", *, classes: int = 10) -> ResidualNetwork:
    """Build a network for small grey images: two stages of one block, 16 and 32 channels."""
    return ResidualNetwork(1, classes, widths=(16, 32), blocks=1, norm=norm)
