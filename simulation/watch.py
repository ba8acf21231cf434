"""Watching a run from outside: peak memory of its processes, and when its first round ended."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

MEMORY_EVERY = 1.0  # seconds
FILE_EVERY = 0.1  # seconds


@dataclass(frozen=True)
class Process:
    """What /proc tells of a process; memory is the most that was ever resident, in megabytes."""

    pid: int
    parent: int
    command: str
    peak_megabytes: float

    @property
    def role(self) -> str:
        """Return "server" (server app and Flower's engine), "worker", "ray" or "other"."""
        if self.command.startswith("ray::ClientAppActor"):
            return "worker"
        if "flwr-simulation" in self.command:
            return "server"
        if self.command.startswith("ray::") or "/ray/" in self.command:
            return "ray"
        return "other"


@dataclass
class Watch:
    """A thread that looks at this process's descendants for as long as a ``with`` block lasts.

    Attributes:
        rounds_file: a file that the run writes a line into at the end of every round.
        peaks: megabytes by role; for "worker" of the largest one, for "ray" of all its processes.
        first_round: seconds from the start of the block to the end of round 1; None before.
    """

    rounds_file: Path
    peaks: dict[str, float] = field(default_factory=dict)
    first_round: float | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        started, looked = time.monotonic(), 0.0
        while not self._stop.wait(FILE_EVERY):
            now = time.monotonic()
            if self.first_round is None and self.rounds_file.is_file():
                self.first_round = now - started
            if now - looked > MEMORY_EVERY:
                looked = now
                merge_peaks(self.peaks, descendants(os.getpid(), processes()))


def merge_peaks(peaks: dict[str, float], seen: list[Process]) -> None:
    """Raise the peaks by role to what is seen now."""
    for role in ("server", "worker", "ray"):
        megabytes = [process.peak_megabytes for process in seen if process.role == role]
        if megabytes:
            now = sum(megabytes) if role == "ray" else max(megabytes)
            peaks[role] = max(peaks.get(role, 0.0), now)


def descendants(ancestor: int, everything: list[Process]) -> list[Process]:
    """Return children of a process, their children, and so on."""
    found, parents = list[Process](), {ancestor}
    while parents:
        children = [process for process in everything if process.parent in parents]
        found += children
        parents = {process.pid for process in children}
    return found


def processes() -> list[Process]:
    """Return all processes of this machine that have memory of their own."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has just ended
                process = parse((folder / "status").read_text(), (folder / "cmdline").read_text())
                if process is not None:
                    found.append(process)
    return found


def parse(status: str, command: str) -> Process | None:
    """Read a process's two files in /proc; None for one without memory (kernel, zombie)."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmHWM" not in fields:
        return None
    return Process(
        pid=int(fields["Pid"]),
        parent=int(fields["PPid"]),
        command=command.replace("\0", " ").strip(),
        peak_megabytes=int(fields["VmHWM"].split()[0]) * 1024 / 1e6,
    )
