"""Images that stay in their files, for data sets that do not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor


class ImageFiles:
    """A sequence of image files that a `Split` can use instead of a tensor.

    Indexing it like a tensor reads and decodes the files, with one thread per core that this
    process may use. Nothing is cached.

    Args:
        paths: One file per image, all of one size.
        read: Reads a file as uint8 `[channels, height, width]`, or `[height, width]` for a mask.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Tensor]) -> None:
        self.paths = tuple(paths)
        self._read = read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        """Return the images at these indices, in this order, as one new tensor."""
        if isinstance(indices, slice):
            paths = self.paths[indices]
        else:
            paths = tuple(self.paths[index] for index in indices.tolist())
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return torch.stack(list(pool.map(self._read, paths)))
