"""Anonymous memory that the server process and its workers share.

The memory has no name and no file: it is freed when the last process that maps it ends, however
that process ends.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import Any

Place = tuple[int, int]
"""The offset and the length of bytes in shared memory."""


class SharedMemory:
    """Memory that grows as needed. Pass it to a worker as an argument of its process.

    Examples:
        >>> memory = SharedMemory()
        >>> places = memory.write([b"weight", b"bias"])
        >>> [bytes(memory.read(place)) for place in places]
        [b'weight', b'bias']

    Args:
        file: The file descriptor of existing memory. Default: new memory.
    """

    def __init__(self, file: int | None = None) -> None:
        self._file = os.memfd_create("fixbn-flwr") if file is None else file
        self._map: mmap.mmap | None = None

    def write(self, parts: Sequence[memoryview | bytes], start: int = 0) -> list[Place]:
        """Write byte strings one after the other, and return where they are.

        Args:
            parts: Contiguous byte strings.
            start: The offset of the first one. Default: 0.
        """
        places, end = [], start
        for part in parts:
            places.append((end, len(part)))
            end += len(part)
        if end > start:
            view = self._view(end)
            for (offset, length), part in zip(places, parts, strict=True):
                view[offset : offset + length] = part
        return places

    def read(self, place: Place) -> memoryview:
        """Return the bytes at a place, without a copy; they change if a process writes there."""
        offset, length = place
        return self._view(offset + length)[offset : offset + length]

    def close(self) -> None:
        """Close this process's file descriptor. Views that exist stay valid."""
        self._map = None
        os.close(self._file)

    def _view(self, size: int) -> memoryview:
        """Return all of the memory, at least ``size`` bytes."""
        if size and (self._map is None or len(self._map) < size):
            if os.fstat(self._file).st_size < size:
                os.ftruncate(self._file, max(size, 2 * os.fstat(self._file).st_size))
            self._map = mmap.mmap(self._file, 0)  # the old map lives as long as its views
        return memoryview(self._map or b"")

    def __reduce__(self) -> Any:
        return _received, (DupFd(self._file),)


def _received(duplicate: Any) -> SharedMemory:
    return SharedMemory(duplicate.detach())
