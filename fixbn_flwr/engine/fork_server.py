"""The process that worker processes are forked from.

It imports everything once, while this process does its own imports, and never starts an OpenMP
thread, which a fork would break. So it and its workers have one thread each, like the clients of
Flower's simulation. This module imports nothing heavy, to be called first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker

from fixbn_flwr.errors import ConfigError

WORKER = "fixbn_flwr.engine.worker"

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def start_fork_server(preload: Sequence[str] = ()) -> None:
    """Start the process if it is not running, and return at once.

    Args:
        preload: Modules that it imports besides Flower's. Only the first call's are imported.

    Raises:
        ConfigError: If the temporary directory has no room or too long a path for its socket.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([WORKER, *preload])
    resource_tracker.ensure_running()  # else the fork server starts it, which unblocks Ctrl-C
    with _one_thread(), _no_interruption():
        try:
            forkserver.ensure_running()
        except OSError as error:
            raise ConfigError(
                f"the process of the simulated clients cannot start in {tempfile.gettempdir()} "
                f"({error}): set TMPDIR to a directory on this machine with a short path."
            ) from error


@contextmanager
def _one_thread() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _no_interruption() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all processes, from one that starts in the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
