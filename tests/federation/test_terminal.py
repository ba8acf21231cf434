"""`fixbn run` on a real terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.terminal import Terminal, lines_left
from tests.support.waiting import TIMEOUT, wait_until

pytestmark = pytest.mark.slow

FIXBN = Path(sys.executable).parent / "fixbn"


def started(terminal: Terminal, folder: Path) -> subprocess.Popen[bytes]:
    """Start a run in a session of its own, whose terminal this is."""
    environment = {k: v for k, v in os.environ.items() if k != "CI"}
    return subprocess.Popen(
        # A shell lets what it starts in the background ignore Ctrl-C, these tests included.
        ["env", "--default-signal=INT", "setsid", "--ctty", str(FIXBN), "run",
         "num-server-rounds=500", "run-name=one"],
        stdin=terminal.fd, stdout=terminal.fd, stderr=terminal.fd, cwd=folder,
        env={**environment, "TERM": "xterm-256color", "COLUMNS": "80"},
    )  # fmt: skip


def test_ctrl_c_leaves_the_bar_and_says_how_to_resume(tmp_path: Path) -> None:
    terminal = Terminal()
    process = started(terminal, tmp_path)
    wait_until(lambda: "round 3/500" in terminal.text(), "three rounds", process=process)
    terminal.type(b"\x03")
    process.wait(TIMEOUT)
    text = terminal.close()
    assert process.returncode == 130
    assert "Traceback" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    *_, bar, message = lines_left(text)
    assert bar.startswith("round ")
    assert message.startswith("Stopped after round ")
    assert message.endswith(f"Resume it with: fixbn run resume={tmp_path / 'runs' / 'one'}")


def test_ctrl_c_while_the_program_starts_prints_no_traceback(tmp_path: Path) -> None:
    terminal = Terminal()
    process = started(terminal, tmp_path)
    wait_until(
        lambda: psutil.Process(process.pid).children(recursive=True),
        "the fork server had started",
        process=process,
    )
    terminal.type(b"\x03")
    process.wait(TIMEOUT)
    assert process.returncode == 130
    assert "Traceback" not in terminal.close()
