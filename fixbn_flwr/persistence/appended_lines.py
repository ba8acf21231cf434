"""Append whole lines to a file that several processes write."""

from __future__ import annotations

import os
from pathlib import Path


def append_lines(path: Path, lines: bytes) -> None:
    """Append lines in one write, after a line that a power failure or a full disk has cut.

    A new file can be read by its owner only. The file is opened for each call, since another
    process may have renamed it.

    Args:
        path: The file.
        lines: One or more lines, each with its line break.

    Raises:
        OSError: If it cannot be written.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        size = os.fstat(file).st_size
        cut = size and os.pread(file, 1, size - 1) != b"\n"
        left = b"\n" + lines if cut else lines
        while left:  # a full disk may take part of it; the next write then raises
            left = left[os.write(file, left) :]
    finally:
        os.close(file)
