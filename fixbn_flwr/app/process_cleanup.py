"""End the processes of a SuperLink, also when the process that started it was killed.

SuperExec, the simulation and Ray have sessions of their own and outlive the process that started
them. `python -m fixbn_flwr.app.process_cleanup HOME` waits until its standard input ends, which a
killed process cannot prevent, then ends all processes of this home and removes it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_STOP = 10.0  # seconds for processes to end before they are killed


def processes_with(home: Path) -> list[int]:
    """Return the processes whose environment has this FLWR_HOME, by whatever path."""
    folder, found = os.path.realpath(os.fsencode(home)), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or belongs to another user
            for entry in environment.read_bytes().split(b"\0"):
                name, _, value = entry.partition(b"=")
                if name == b"FLWR_HOME" and value and os.path.realpath(value) == folder:
                    found.append(int(environment.parent.name))
    return found


def end_processes(home: Path) -> None:
    """End all processes of a FLWR_HOME; kill those that do not end in time."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes_with(home):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        end = time.monotonic() + _STOP
        while processes_with(home) and time.monotonic() < end:
            time.sleep(0.1)


def start_guard(home: Path) -> subprocess.Popen[bytes]:
    """Start the process that cleans up after this one. It ends when its ``stdin`` is closed."""
    return subprocess.Popen(
        [sys.executable, "-m", "fixbn_flwr.app.process_cleanup", str(home)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for it
    )


def main() -> None:
    """Wait for the end of the standard input, and clean up."""
    home = Path(sys.argv[1])
    sys.stdin.buffer.read()
    end_processes(home)
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
