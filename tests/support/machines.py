"""Machines for tests: each has its own loopback address, home and checkout; they share no file.

They run real processes, which the scripts of `deploy/` start as they do for users.
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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.waiting import TIMEOUT, read_log, wait_for_line, wait_until

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
APP = ("fixbn_flwr", "deploy", "examples", "pyproject.toml", "LICENSE", "README.md")

_RESERVED: list[socket.socket] = []  # see free_port


class Machine:
    """One machine. Its checkout is also its home, and `run` runs shell commands there.

    `within` is the prefix of a command that runs another command on this machine. By default it is
    empty: machines then differ only by their homes and addresses.
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
        """Run a shell command to its end; its stdout includes its stderr."""
        result = subprocess.run(
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
        assert not check or result.returncode == 0, f"{command}\n{result.stdout}"
        return result

    def start(self, command: str, log: str, **environment: str) -> Service:
        """Start a command in the background, with its output in a file of the machine's home."""
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
        """Return the processes that run a program and have this machine's home."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # the process has ended
                environment = (process / "environ").read_bytes().split(b"\0")
                command = (process / "cmdline").read_bytes().decode(errors="replace")
                if f"HOME={self.home}".encode() in environment and program in command:
                    found.append(int(process.name))
        return sorted(found)

    def kill(self, program: str) -> None:
        """Kill all processes that run a program."""
        for process in self.processes(program):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def wait_until_off(self) -> None:
        """Wait until all processes of this machine have ended."""
        wait_until(lambda: not self.processes(), f"all processes of {self.address} ended")

    def switch_off(self) -> None:
        """Kill all processes of this machine."""

        def is_off() -> bool:
            self.kill("")
            return not self.processes()

        wait_until(is_off, f"all processes of {self.address} were killed")
        for process in self.started:
            if process.poll() is None:  # nginx overwrites its environment
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(TIMEOUT)


class Service:
    """A background process and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def output(self) -> str:
        return read_log(self._log)

    def wait_for(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until a pattern matches in the log so many times; return the last match."""
        return wait_for_line(self._log, pattern, self.process, count=count)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until a condition holds; fail at once if the process ends first."""
        wait_until(condition, what, process=self.process, log=self._log)

    def end(self) -> int:
        """Wait for the process to end by itself; return its status."""
        return self.process.wait(TIMEOUT)

    def stop(self) -> int:
        """Terminate the process; return its status."""
        self.process.terminate()
        return self.end()


def free_port(address: str) -> int:
    """Reserve a port of an address for a server that a test starts later.

    A socket stays bound to it, without listening, until the tests end. The kernel then assigns the
    port to no other process, and a server that sets SO_REUSEADDR can still bind it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    reserved = socket.socket(family)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((address, 0))
    _RESERVED.append(reserved)
    return int(reserved.getsockname()[1])


def round_lines(log: str) -> list[str]:
    """Return the lines in which the app reports rounds."""
    return [line for line in log.splitlines() if re.match(r"round +\d+/", line)]


def switch_off(machines: Iterable[Machine]) -> None:
    for machine in machines:
        machine.switch_off()
