"""The lock that keeps other processes from changing the folder of a running run."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.log import logger


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a run's folder until the block or the process ends, however it ends.

    On a file system without locks, such as some network disks, only log a warning.

    Raises:
        CheckpointError: If another process holds the lock.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        try:
            _lock(folder)
        except BlockingIOError:
            raise CheckpointError(
                f"another process is running the run in {path}: wait until it ends, or stop it"
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): use it from one process only", path, error)
        yield
    finally:
        os.close(folder)


def is_locked(path: Path) -> bool:
    """Return whether a process runs the run in this folder.

    On a file system without locks, or if the folder has disappeared, return False.
    """
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(folder)
    return False


def _lock(folder: int) -> None:
    """Lock an open folder; try again for a moment, because `is_locked` takes the lock for one."""
    for _ in range(10):
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
    return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
