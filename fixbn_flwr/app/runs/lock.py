"""The lock that keeps other processes from changing the folder of a running run."""

from __future__ import annotations

import fcntl
import os
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
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another process is running the run in {path}: wait until it ends, or stop it"
            ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): use it from one process only", path, error)
        yield
    finally:
        os.close(folder)
