"""Machines of a test: each has a loopback address, a home and a checkout, and shares no file.

What runs on them are real processes, started by the scripts of `deploy/` as users start them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
APP = ("fixbn_flwr", "deploy", "examples", "pyproject.toml")
TIMEOUT = 1200.0  # seconds for what takes some ten on an idle machine


class Machine:
    """One machine: `run` is its shell, in its checkout, which is its home as well.

    `within` are the words of a command that runs another one on this machine; none here, where
    machines differ by their homes and by what they listen at.
    """

    def __init__(self, folder: Path, address: str, within: Sequence[str] = ()) -> None:
        self.home = folder / address
        self.address = address
        self.within = tuple(within)
        (self.home / "tmp").mkdir(parents=True)
        for name in APP:
            source, target = ROOT / name, self.home / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
        self.environment = {
            "HOME": str(self.home),
            "TMPDIR": str(self.home / "tmp"),
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self.started: list[subprocess.Popen[bytes]] = []

    def run(
        self, command: str, *, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command to its end; what it says is stdout and stderr together."""
        answer = subprocess.run(
            [*self.within, "bash", "-euo", "pipefail", "-c", command],
            cwd=self.home,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
        assert not check or answer.returncode == 0, f"{command}\n{answer.stdout}"
        return answer

    def start(self, command: str, log: str, **environment: str) -> Service:
        """Start a command that stays, its output in a file of the machine's home."""
        with (self.home / log).open("ab") as file:
            process = subprocess.Popen(
                [*self.within, *shlex.split(command)],
                cwd=self.home,
                env=self.environment | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return Service(process, self.home / log)

    def processes(self, program: str = "") -> list[int]:
        """The processes of this machine, which are those with its home, that run a program."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                environment = (process / "environ").read_bytes().split(b"\0")
                command = (process / "cmdline").read_bytes().decode(errors="replace")
                if f"HOME={self.home}".encode() in environment and program in command:
                    found.append(int(process.name))
        return sorted(found)

    def kill(self, program: str) -> None:
        """End processes as a power failure does."""
        for process in self.processes(program):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def wait_until_off(self) -> None:
        """Wait until all that ran here has ended."""
        end = time.monotonic() + TIMEOUT
        while left := self.processes():
            assert time.monotonic() < end, f"still running: {left}"
            time.sleep(0.2)

    def switch_off(self) -> None:
        """End all that runs here."""
        while self.processes():
            self.kill("")
            time.sleep(0.05)
        for process in self.started:
            process.wait(TIMEOUT)


class Service:
    """A process that stays, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def said(self) -> str:
        return without_colours(self._log.read_text(errors="replace"))

    def wait_for(self, pattern: str, count: int = 1, timeout: float = TIMEOUT) -> re.Match[str]:
        """Wait until a pattern stands in the log, so many times; return the last match."""
        end = time.monotonic() + timeout
        while True:
            over = self.process.poll() is not None
            matches = list(re.finditer(pattern, self.said))
            if len(matches) >= count:
                return matches[count - 1]
            assert not over, f"ended before it said {pattern!r}:\n{self.said}"
            assert time.monotonic() < end, f"has not said {pattern!r}:\n{self.said}"
            time.sleep(0.2)

    def end(self) -> int:
        """Wait for the process to end by itself; return its status."""
        return self.process.wait(TIMEOUT)

    def stop(self) -> int:
        """End it as `kill` does."""
        self.process.terminate()
        return self.end()


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def round_lines(log: str) -> list[str]:
    """The lines by which the app reports rounds."""
    return [line for line in log.splitlines() if re.match(r"round +\d+/", line)]


def switch_off(machines: Iterable[Machine]) -> None:
    for machine in machines:
        machine.switch_off()
