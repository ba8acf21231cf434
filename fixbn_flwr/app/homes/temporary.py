"""Temporary folders that processes have left behind: Ray's, and those of this package.

Ray never deletes the folder of a session. This package deletes its own, unless it is killed.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from fixbn_flwr.app.homes.home import last_use

# The names that tempfile gives. Not eight digits: fixbn-<user id> is where nodes keep the sockets
# of their workers, which no command line names.
_OURS = re.compile(r"fixbn-(app-)?(?!\d{8}$)[a-z0-9_]{8}")


def abandoned(before: datetime, folder: Path | None = None) -> list[Path]:
    """Return this user's temporary folders that no process uses.

    Args:
        before: They were last written before this time.
        folder: The folder for temporary files. Default: the system's.
    """
    folder = folder or Path(tempfile.gettempdir())
    found = [path for path in sorted(folder.glob("fixbn-*")) if _OURS.fullmatch(path.name)]
    found += sorted(folder.glob("ray/session_2*"))
    used = b"\n".join(_traces())
    return [
        path
        for path in found
        if _may_be_deleted(path) and last_use(path) < before and os.fsencode(path) not in used
    ]


def _may_be_deleted(path: Path) -> bool:
    """Return whether it is this user's folder, and private as tempfile makes it, or Ray's."""
    with suppress(FileNotFoundError):
        found = path.lstat()
        private = stat.S_IMODE(found.st_mode) == 0o700 or path.parent.name == "ray"
        return stat.S_ISDIR(found.st_mode) and private and found.st_uid == os.geteuid()
    return False


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
