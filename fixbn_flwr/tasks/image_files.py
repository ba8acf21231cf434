"""Images that stay in their files, for data sets that do not fit memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor


class ImageFiles:
    """Stands where a `Split` has a tensor: indexed like one, it reads the files asked for.

    They are decoded by as many threads as this process may use cores. Nothing is kept.

    Args:
        paths: one file an image, all of one size.
        read: from a file to its tensor, uint8 `[channels, height, width]`, or `[height, width]` for
            a mask.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Tensor]) -> None:
        self.paths = tuple(paths)
        self._read = read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        """Return the images asked for, in this order, as one new tensor."""
        if isinstance(indices, slice):
            paths = self.paths[indices]
        else:
            paths = tuple(self.paths[index] for index in indices.tolist())
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return torch.stack(list(pool.map(self._read, paths)))
