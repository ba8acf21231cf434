"""Compare the gradient under a batch's own statistics with the one under the global statistics.

Their difference is what FixBN's paper calls gradient deviation: with mini-batch statistics a
client's gradient depends on who else is in the batch, which the global model never sees. See Zhong,
Chen, Chao, "Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fixbn_flwr.method.batch_norm import freeze_statistics, statistics_layers
from fixbn_flwr.method.round_config import GRADIENT_COSINE, GRADIENT_NORM_RATIO


@dataclass(frozen=True)
class GradientComparison:
    """How two gradients of a model differ.

    Attributes:
        cosine: The cosine of the angle between them, in [-1, 1].
        norm_ratio: The length of the gradient under the batch's statistics, divided by that under
            the global ones.
    """

    cosine: float
    norm_ratio: float

    def as_report(self) -> dict[str, float]:
        """Return what a client reports to the server."""
        return {GRADIENT_COSINE: self.cosine, GRADIENT_NORM_RATIO: self.norm_ratio}


def compare_gradients(model: nn.Module, loss: Callable[[], Tensor]) -> GradientComparison | None:
    """Compare two gradients of a loss. Neither parameters, buffers nor ``grad`` change.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        >>> batch = torch.randn(8, 2)
        >>> compared = compare_gradients(model, lambda: model(batch).square().mean())
        >>> compared is None or -1 <= compared.cosine <= 1
        True

    Args:
        model: The model, with the global statistics loaded and not frozen.
        loss: Returns the loss of one batch, a scalar. It is called twice, with the same random
            numbers.

    Returns:
        The comparison; None if the model has no running statistics or no trained parameters, or a
        gradient is zero or not finite.
    """
    if not statistics_layers(model) or not any(p.requires_grad for p in model.parameters()):
        return None
    modes = {layer: layer.training for layer in model.modules()}
    try:
        model.train()
        with _restored_buffers(model):
            of_batch = _gradient(model, loss)
        with _restored_buffers(model), freeze_statistics(model):
            of_all = _gradient(model, loss)
    finally:
        for layer, mode in modes.items():
            layer.training = mode
    lengths = float(of_batch.norm() * of_all.norm())
    if not 0.0 < lengths < math.inf:
        return None
    cosine = float(of_batch @ of_all) / lengths
    return GradientComparison(max(-1.0, min(1.0, cosine)), float(of_batch.norm() / of_all.norm()))


@contextmanager
def _restored_buffers(model: nn.Module) -> Iterator[None]:
    """Undo at the end of the block what it does to buffers: new values, and new tensors."""
    before = [
        (layer._buffers, name, buffer, buffer.clone())
        for layer in model.modules()
        for name, buffer in layer._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for buffers, name, buffer, value in before:
            # A buffer that did not change may be a view that cannot be written, as of expand().
            buffers[name] = buffer if torch.equal(buffer, value) else buffer.copy_(value)


def _gradient(model: nn.Module, loss: Callable[[], Tensor]) -> Tensor:
    """Return the gradient by all trained parameters, float64 ``[number of values]``."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    devices = {p.device for p in parameters if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        parts = torch.autograd.grad(loss(), parameters, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if part is None else part.to_dense()).detach().flatten().double()
            for p, part in zip(parameters, parts, strict=True)
        ]
    )
