"""Waits for a condition or a line of a log; the errors name what did not happen."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

TIMEOUT = 1200.0  # seconds for what takes about ten on an idle machine
_POLL = 0.1  # seconds between two checks
_TAIL = 40  # lines of a log that an error shows


def wait_until(
    condition: Callable[[], T],
    what: str,
    *,
    process: subprocess.Popen[Any] | None = None,
    log: Path | None = None,
    timeout: float = TIMEOUT,
) -> T:
    """Wait until a condition holds, and return its value.

    Args:
        condition: The function to poll; it holds when it returns a true value.
        what: The condition in words, for the errors.
        process: The process that makes it hold. If it ends first, the wait fails at once.
        log: A file whose end the errors show.
        timeout: Seconds after which the wait fails. Default: ``TIMEOUT``.

    Raises:
        AssertionError: If the timeout passes, or the process ends and the condition does not hold.
    """
    deadline = time.monotonic() + timeout
    while True:
        ended = process is not None and process.poll() is not None
        expired = time.monotonic() > deadline
        if value := condition():
            return value
        # Both values were read before the condition, so the last check is not too early.
        if ended and process is not None:
            raise AssertionError(
                f"the process ended with status {process.returncode} before {what}{_end_of(log)}"
            )
        if expired:
            raise AssertionError(f"timed out after {timeout:.0f} s before {what}{_end_of(log)}")
        time.sleep(_POLL)


def wait_for_line(
    log: Path,
    pattern: str,
    process: subprocess.Popen[Any] | None = None,
    *,
    count: int = 1,
    timeout: float = TIMEOUT,
) -> re.Match[str]:
    """Wait until a pattern matches in a log; return its ``count``-th match.

    The log need not exist yet. The other arguments and the errors are those of `wait_until`.
    """

    def last_match() -> re.Match[str] | None:
        matches = list(re.finditer(pattern, read_log(log)))
        return matches[count - 1] if len(matches) >= count else None

    what = f"{log.name} had {count} match{'es' * (count > 1)} of {pattern!r}"
    match = wait_until(last_match, what, process=process, log=log, timeout=timeout)
    assert match is not None
    return match


def shell_wait(command: str, *, log: str) -> str:
    """Return shell code that repeats a command until it succeeds.

    The code prints the log and exits if the latest background process ends first.
    """
    return f"until {command}; do kill -0 $! || {{ cat {log}; exit 1; }}; sleep 0.5; done"


def read_log(log: Path) -> str:
    """Return the text of a log without colours; an empty text if there is no file yet."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return without_colours(text)


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _end_of(log: Path | None) -> str:
    if log is None:
        return ""
    lines = read_log(log).splitlines()[-_TAIL:]
    return "\n".join([f"; the end of {log}:", *lines])
