"""Temporary folders that processes have left behind: Ray's, and those of this package.

Ray never deletes the folder of a session. This package deletes its own, unless it is killed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from fixbn_flwr.app.homes.home import last_use

_PATTERNS = ("fixbn-*", "ray/session_2*")


def abandoned(before: datetime, folder: Path | None = None) -> list[Path]:
    """Return this user's temporary folders that no process uses.

    Args:
        before: They were last written before this time.
        folder: The folder for temporary files. Default: the system's.
    """
    folder = folder or Path(tempfile.gettempdir())
    found = [path for pattern in _PATTERNS for path in sorted(folder.glob(pattern))]
    used = b"\n".join(_traces())
    return [
        path
        for path in found
        if path.is_dir()
        and not path.is_symlink()
        and path.stat().st_uid == os.geteuid()
        and last_use(path) < before
        and not _mentions(used, path)
    ]


def _mentions(used: bytes, path: Path) -> bool:
    # fixbn-<user> is where nodes keep the sockets of their workers, which no command line names.
    return os.fsencode(path) in used or path.name == f"fixbn-{os.geteuid()}"


def _traces() -> Iterator[bytes]:
    """Yield the command line, environment, working directory and open files of each process."""
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with suppress(OSError):  # it has ended, or belongs to another user
                yield (process / name).read_bytes()
        with suppress(OSError):
            yield os.fsencode(os.readlink(process / "cwd"))
        with suppress(OSError):
            for file in (process / "fd").iterdir():
                with suppress(OSError):
                    yield os.fsencode(os.readlink(file))
