"""Helpers for tests of real federations."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import wait_until

PROGRAMS = Path(sys.executable).parent  # where fixbn and flwr are


@dataclass(frozen=True)
class Outcome:
    """The result of a run: its failure or None, its output, and the path of its run folder."""

    failure: str | None
    log: str
    folder: Path


Simulate = Callable[..., Outcome]


@contextmanager
def running_fixbn(*words: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `fixbn` in a folder, with stdout and stderr in one stream; stop it if a test fails."""
    with subprocess.Popen(
        [str(PROGRAMS / "fixbn"), *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        except BaseException:
            process.terminate()
            raise


def home_until(run: subprocess.Popen[str], line_begins: str) -> Path:
    """Read a run's output up to a line; return its FLWR_HOME, which the output names before it."""
    output, home = list[str](), None
    for line in run.stdout or ():
        output.append(line)
        if line.startswith("Successfully installed"):
            home = Path(line.split(" to ")[1]).parents[1]
        if line.startswith(line_begins):
            assert home is not None
            return home
    raise AssertionError(f"no line begins with {line_begins!r}:\n{''.join(output)}")


def kill_processes_of(home: Path) -> None:
    """Kill the processes of a FLWR_HOME, including those that they start meanwhile."""

    def are_gone() -> bool:
        found = processes_of(home)
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return not found

    wait_until(are_gone, f"all processes of {home} were killed")


def processes_of(home: Path) -> dict[int, str]:
    """Return the commands, by process, with this FLWR_HOME in their arguments or environment."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (
                (process / name).read_bytes() for name in ("cmdline", "environ")
            )
        except OSError:
            continue  # the process has ended
        if os.fsencode(home) in command + environment:
            found[int(process.name)] = command.replace(b"\0", b" ").decode()
    return found
