"""Watch the memory and the processor time of a run's processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

MEMORY_EVERY = 1.0  # seconds
FILE_EVERY = 0.1  # seconds


@dataclass(frozen=True)
class Process:
    """A process at one moment.

    Attributes:
        pid: The process id.
        command: The command line.
        peak_megabytes: The most resident memory so far, in 10^6 bytes.
        seconds: The processor time so far.
    """

    pid: int
    command: str
    peak_megabytes: float
    seconds: float

    @property
    def role(self) -> str:
        """The role: "server" (the server app's process), "worker", "ray" or "other"."""
        if self.command.startswith("ray::ClientAppActor") or "forkserver" in self.command:
            return "worker"
        if "flwr-simulation" in self.command or "fixbn run --engine local" in self.command:
            return "server"
        if self.command.startswith("ray::") or "/ray/" in self.command:
            return "ray"
        return "other"


def descendants() -> list[Process]:
    """Return the children of this process, their children, and so on."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, OSError, IndexError):  # it has ended, or is a zombie
            command = " ".join(child.cmdline()).strip()
            time_used = child.cpu_times()
            peak = _peak_megabytes(child.pid)
            found.append(Process(child.pid, command, peak, time_used.user + time_used.system))
    return found


def _peak_megabytes(pid: int) -> float:
    """Return a process's peak memory, which the kernel keeps and psutil does not report."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024 / 1e6


@dataclass
class Watch:
    """A thread that watches this process's descendants during a ``with`` block.

    Attributes:
        rounds_file: A file that gets a line at the end of each round.
        peaks: Megabytes by role: of the largest process, and of all processes together for "ray".
        first_round: Seconds from the start of the block to the end of round 1; None before.
        processor: Seconds of processor time of all processes at the end of each round.
    """

    rounds_file: Path
    peaks: dict[str, float] = field(default_factory=dict)
    first_round: float | None = None
    processor: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._watch, daemon=True)
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

    def _watch(self) -> None:
        started, last_look = time.monotonic(), 0.0
        while not self._stop.wait(FILE_EVERY):
            now = time.monotonic()
            done = self._rounds_done()
            if done and self.first_round is None:
                self.first_round = now - started
            if done > len(self.processor) or now - last_look > MEMORY_EVERY:
                last_look, processes = now, descendants()
                merge_peaks(self.peaks, processes)
                total = sum(process.seconds for process in processes)
                self.processor += [total] * (done - len(self.processor))

    def _rounds_done(self) -> int:
        with suppress(FileNotFoundError):
            return self.rounds_file.read_bytes().count(b"\n")
        return 0


def merge_peaks(peaks: dict[str, float], processes: Sequence[Process]) -> None:
    """Raise the peaks by role to those of the processes."""
    for role in ("server", "worker", "ray"):
        megabytes = [process.peak_megabytes for process in processes if process.role == role]
        if megabytes:
            now = sum(megabytes) if role == "ray" else max(megabytes)
            peaks[role] = max(peaks.get(role, 0.0), now)
