"""Watching a run from outside: the memory and the processor time of its processes."""

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
TICKS = os.sysconf("SC_CLK_TCK")  # of processor time in a second


@dataclass(frozen=True)
class Process:
    """What /proc tells of a process.

    Attributes:
        pid: its number.
        parent: its parent's number.
        command: the command line.
        peak_megabytes: the most memory that was ever resident.
        seconds: of processor time so far.
    """

    pid: int
    parent: int
    command: str
    peak_megabytes: float
    seconds: float

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
        processor: seconds of processor time of all processes at the end of each round.
    """

    rounds_file: Path
    peaks: dict[str, float] = field(default_factory=dict)
    first_round: float | None = None
    processor: list[float] = field(default_factory=list)
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
            done = self._rounds_done()
            if done and self.first_round is None:
                self.first_round = now - started
            if done > len(self.processor) or now - looked > MEMORY_EVERY:
                looked, seen = now, descendants(os.getpid(), processes())
                merge_peaks(self.peaks, seen)
                total = sum(process.seconds for process in seen)
                self.processor += [total] * (done - len(self.processor))

    def _rounds_done(self) -> int:
        with suppress(FileNotFoundError):
            return self.rounds_file.read_bytes().count(b"\n")
        return 0


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
                status, stat, command = (
                    (folder / name).read_text() for name in ("status", "stat", "cmdline")
                )
                process = parse(status, stat, command)
                if process is not None:
                    found.append(process)
    return found


def parse(status: str, stat: str, command: str) -> Process | None:
    """Read a process's files in /proc; None for one without memory (kernel, zombie)."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "VmHWM" not in fields:
        return None
    user, system = stat.rpartition(")")[2].split()[11:13]
    return Process(
        pid=int(fields["Pid"]),
        parent=int(fields["PPid"]),
        command=command.replace("\0", " ").strip(),
        peak_megabytes=int(fields["VmHWM"].split()[0]) * 1024 / 1e6,
        seconds=(int(user) + int(system)) / TICKS,
    )
