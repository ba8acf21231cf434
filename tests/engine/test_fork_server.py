"""The process that workers are forked from, as this process starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import psutil, signal
from fixbn_flwr.engine.fork_server import start_fork_server

start_fork_server()
for process in psutil.Process().children():
    with open(f"/proc/{process.pid}/status") as status:
        blocked = next(line.split()[1] for line in status if line.startswith("SigBlk"))
    print(bool(int(blocked, 16) >> signal.SIGINT - 1 & 1))
print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


def test_ctrl_c_does_not_reach_what_it_starts_but_still_this_process() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["True", "True", "False"]


def test_a_temporary_directory_with_a_long_path_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": str(long)},
    )
    assert f"cannot start in {long} (AF_UNIX path too long): set TMPDIR" in result.stderr
