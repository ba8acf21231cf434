"""Runs the scripts of deploy/ in a folder that is also their home."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.machines import PROGRAMS, ROOT
from tests.support.waiting import TIMEOUT

Run = Callable[[str], "subprocess.CompletedProcess[str]"]


def environment(home: Path) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "deploy"), str(PROGRAMS), os.environ["PATH"]])
    return {"HOME": str(home), "PATH": path}


def run_script(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a shell line with a script of deploy/."""
    return subprocess.run(
        ["sh", "-c", line],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )


@contextmanager
def running(line: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script of deploy/ in the background, in the folder of its log; stop it afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            shlex.split(line),
            cwd=log.parent,
            env=environment(log.parent) | {"PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(TIMEOUT)


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """Return the error message of a script that fails."""
    assert result.returncode == 1, result
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")
