"""The return values and the errors of the waiting helpers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.waiting import wait_for_line, wait_until


def test_wait_until_returns_the_first_true_value() -> None:
    values = iter([0, None, 7])
    assert wait_until(lambda: next(values), "a value came") == 7


def test_a_timeout_names_the_condition() -> None:
    with pytest.raises(AssertionError, match="timed out after 0 s before it rained"):
        wait_until(lambda: False, "it rained", timeout=0.0)


def test_a_line_is_found_in_a_log_that_does_not_exist_yet(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with subprocess.Popen(["sh", "-c", f"echo a 1 a 2 > {log}"]) as process:
        assert wait_for_line(log, r"a (\d)", process, count=2)[1] == "2"


def test_a_process_that_ends_first_fails_at_once_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        subprocess.Popen(["sh", "-c", f"echo out of memory > {log}; exit 3"]) as process,
        pytest.raises(AssertionError, match=r"(?s)ended with status 3 before .*out of memory"),
    ):
        wait_for_line(log, "ready", process)
