"""The sizes of files that other processes may delete meanwhile."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def files_in(path: Path) -> Iterator[os.stat_result]:
    """Yield the sizes and times of all files in a folder; a file that disappears is left out."""
    for folder, _, names in os.walk(path):  # which leaves out folders that disappear
        for name in names:
            with suppress(FileNotFoundError):
                found = os.lstat(os.path.join(folder, name))
                if stat.S_ISREG(found.st_mode):
                    yield found


def bytes_of(*paths: Path) -> int:
    """Return the size of files, and of all files in folders."""
    size = 0
    for path in paths:
        with suppress(FileNotFoundError):
            size += sum(file.st_size for file in files_in(path))
            size += path.stat().st_size if path.is_file() else 0
    return size
