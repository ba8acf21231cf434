"""Images that stay in their files, for data sets that do not fit into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Generic, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")

IN_MEMORY = 2**31
"""The bytes up to which the images of a data set are read into memory."""
_CHUNK = 256  # images read together


class ImageFiles(Generic[Item]):
    """A sequence of images in files that a `Split` can use instead of a tensor.

    Indexing it like a tensor reads and decodes the files, with one thread per core that this
    process may use. Nothing is cached.

    Args:
        items: One per image: its file, or its number in the data set.
        read: Reads an image as uint8 `[channels, height, width]`, or `[height, width]` for a mask.
            All have one size.
    """

    def __init__(self, items: Sequence[Item], read: Callable[[Item], Tensor]) -> None:
        self.items = tuple(items)
        self._read = read

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, indices: Tensor | slice) -> Tensor:
        """Return the images at these indices, in this order, as one new tensor."""
        if isinstance(indices, slice):
            items = self.items[indices]
        else:
            items = tuple(self.items[index] for index in indices.tolist())
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return torch.stack(list(pool.map(self._read, items)))


def fits_in_memory(images: int, shape: Sequence[int]) -> bool:
    """Return whether so many images of a shape are at most `IN_MEMORY`, 2 GiB."""
    return images * prod(shape) <= IN_MEMORY


def stored(
    items: Sequence[Item], read: Callable[[Item], Tensor], shape: Sequence[int], *, in_memory: bool
) -> Tensor | ImageFiles[Item]:
    """Return images as one tensor, or as files that are read when needed.

    Args:
        items: One per image, see `ImageFiles`.
        read: Reads an image.
        shape: The shape of each image.
        in_memory: Whether to read them now, into one tensor.
    """
    files = ImageFiles(items, read)
    if not in_memory:
        return files
    tensor = torch.empty(len(items), *shape, dtype=torch.uint8)
    for start in range(0, len(items), _CHUNK):
        tensor[start : start + _CHUNK] = files[start : start + _CHUNK]
    return tensor
