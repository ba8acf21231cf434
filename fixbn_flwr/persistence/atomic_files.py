"""Files that are written whole or not at all, also when the machine stops, and what heads them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that whoever opens it, at any moment, finds the old or the new one whole.

    When this returns, the file is on the disk and survives a loss of power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


def safetensors_metadata(content: bytes) -> dict[str, Any]:
    """Return the metadata of a safetensors file: header's length, header in JSON, data.

    Raises:
        Exception: it has none, or is no such file; of what type depends on how it is damaged.
    """
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata: dict[str, Any] = header["__metadata__"]
    return metadata


def remove_partial_files(folder: Path) -> None:
    """Remove what a process that was killed in the middle of ``write_atomically`` has left."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)
