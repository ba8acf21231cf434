"""Log files of bounded size: FILE, and up to four older ones, FILE.1 to FILE.4.

A helper process keeps them. It is forked by a script before that script becomes the SuperLink or
nginx, and ends with it: it holds the reading end of a pipe whose writing end they inherit.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from logging import makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Annotated

import typer
from common import PRIVATE_FILE, DeployError

OLD = 4  # older files of each log
MIB = 2**20
PERIOD = 1.0  # seconds between two checks of the size of files that others write
_LONGEST = 64 * 1024  # characters of a line; a longer one is split

LogFile = Annotated[
    Path | None,
    typer.Option("--log", help="Write all output to this file, rotated. Default: to stdout."),
]
LogSize = Annotated[
    int, typer.Option(min=1, help="Rotate each log at this many MiB; 4 older files are kept.")
]
LOG_MIB = 10


def open_log(path: Path, mib: int) -> RotatingFileHandler:
    """Open a log that only its owner can read, to append to it.

    Raises:
        DeployError: If it cannot be written.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, PRIVATE_FILE))
        handler = RotatingFileHandler(
            path, maxBytes=mib * MIB, backupCount=OLD, encoding="utf-8", errors="replace"
        )
    except OSError as error:
        raise DeployError(f"the log {path} cannot be written ({error}): choose another.") from error
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # such as a full disk
    return handler


def rotate(path: Path, mib: int) -> bool:
    """Rename a log that has reached its size, and its older files; return whether it had."""
    if not path.exists() or path.stat().st_size < mib * MIB:
        return False
    handler = RotatingFileHandler(path, backupCount=OLD, delay=True)
    handler.doRollover()
    handler.close()
    return True


def start_helper(work: Callable[[int], None]) -> int:
    """Fork a process that runs `work` with a pipe's reading end.

    Returns:
        The writing end, which programs inherit. When the last one ends, so should `work`.
    """
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(writing)
        for number in (signal.SIGINT, signal.SIGTERM):  # it ends after what it serves
            signal.signal(number, signal.SIG_IGN)
        os.umask(0o077)
        try:
            work(reading)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(reading)
    os.set_inheritable(writing, True)
    return writing


def ended(reading: int, seconds: float) -> bool:
    """Wait, and return whether the processes that the helper serves have ended."""
    return bool(select.select([reading], [], [], seconds)[0])


def keep_output(log: Path | None, mib: int) -> None:
    """Write the output of this process, and of those it starts, to a log; None: to stdout."""
    if log is None:
        return
    handler = open_log(log.expanduser().absolute(), mib)

    def copy(reading: int) -> None:
        with os.fdopen(reading, encoding="utf-8", errors="replace", newline="\n") as lines:
            while line := lines.readline(_LONGEST):
                handler.emit(makeLogRecord({"msg": line.removesuffix("\n")}))

    writing = start_helper(copy)
    handler.close()
    sys.stdout.flush()
    sys.stderr.flush()
    for output in (1, 2):
        os.dup2(writing, output)
    os.close(writing)


def keep_bounded(logs: Sequence[Path], mib: int) -> None:
    """Bound logs that this process writes after it has become nginx."""
    for log in logs:
        rotate(log, mib)
    nginx = os.getpid()

    def watch(reading: int) -> None:
        failed: set[Path] = set()
        while not ended(reading, PERIOD):
            rotated = False
            for log in logs:
                try:
                    rotated |= rotate(log, mib)
                    failed.discard(log)
                except OSError as error:  # tried again in a second
                    if log not in failed:
                        print(f"{log} cannot be rotated, and grows: {error}", flush=True)
                    failed.add(log)
            # nginx writes to the renamed file until it opens a new one.
            if rotated and os.getppid() == nginx:
                with suppress(ProcessLookupError):
                    os.kill(nginx, signal.SIGUSR1)

    start_helper(watch)
