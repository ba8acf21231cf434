"""What the tests of real federations share beside their fixtures."""

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
    """How a run ended: None or its failure, all that it said, and where its folder is to be."""

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
    """Read what a run says up to a line; return its FLWR_HOME, which it has named before."""
    said, home = list[str](), None
    for line in run.stdout or ():
        said.append(line)
        if line.startswith("Successfully installed"):
            home = Path(line.split(" to ")[1]).parents[1]
        if line.startswith(line_begins):
            assert home is not None
            return home
    raise AssertionError(f"no line begins with {line_begins!r}:\n{''.join(said)}")


def kill_processes_of(home: Path) -> None:
    """Kill the processes of a FLWR_HOME, also those that they start meanwhile."""

    def are_gone() -> bool:
        found = processes_of(home)
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return not found

    wait_until(are_gone, f"all processes of {home} were killed")


def processes_of(home: Path) -> dict[int, str]:
    """The processes that have a FLWR_HOME in their arguments or environment, and what they are."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (
                (process / name).read_bytes() for name in ("cmdline", "environ")
            )
        except OSError:
            continue  # it has ended meanwhile
        if os.fsencode(home) in command + environment:
            found[int(process.name)] = command.replace(b"\0", b" ").decode()
    return found
