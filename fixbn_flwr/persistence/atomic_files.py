"""Write files whole or not at all, even if the machine stops, and read their metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old or the new content, never a part.

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
        os.fsync(folder)  # the new name
    finally:
        os.close(folder)


def safetensors_metadata(content: bytes) -> dict[str, Any]:
    """Return the metadata in the JSON header of a safetensors file.

    Raises:
        Exception: If it has none, or is not such a file. The type depends on the damage.
    """
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata: dict[str, Any] = header["__metadata__"]
    return metadata


def remove_partial_files(folder: Path) -> None:
    """Remove files that a process left when it was killed inside ``write_atomically``."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)
