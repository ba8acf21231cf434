"""Divide a client's images into the mini-batches of a round."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def batches_by_steps(
    indices: Tensor, size: int, steps: int, random: torch.Generator
) -> Iterator[Tensor]:
    """Yield ``steps`` batches of exactly ``size`` indices, pass after pass over all of them.

    Each pass has a new random order. A batch may span the end of one pass and the start of another.
    """
    passes = -(-steps * size // len(indices))
    order = torch.cat([torch.randperm(len(indices), generator=random) for _ in range(passes)])
    for step in range(steps):
        yield indices[order[step * size : (step + 1) * size]]


def batches_by_epochs(
    indices: Tensor, size: int, epochs: int, random: torch.Generator
) -> Iterator[Tensor]:
    """Yield the batches of ``epochs`` passes over all indices, each pass in a new random order.

    An epoch's batches have nearly equal sizes of at most ``size``. So no index is left out, and no
    batch of one or two images remains, with which batch normalization fails.
    """
    for _ in range(epochs):
        order = torch.randperm(len(indices), generator=random)
        yield from indices[order].tensor_split(-(-len(indices) // size))
