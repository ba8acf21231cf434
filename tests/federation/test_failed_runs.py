"""Real runs that cannot work end with one message that says why, and leave no files."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fixbn_flwr.app.local_superlink import local_superlink
from fixbn_flwr.errors import SuperLinkError
from tests.support.real_runs import PROGRAMS, Simulate, home_until, processes_of, running_fixbn
from tests.support.waiting import TIMEOUT, wait_until, without_colours

pytestmark = pytest.mark.slow

FIXBN = str(PROGRAMS / "fixbn")


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_batch_larger_than_the_smallest_client_fails_with_one_message_and_exit_code_1(
    engine: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    result = subprocess.run(
        [FIXBN, "run", f"output-dir={runs}", "batch-size=500", "--clients=4", "--engine", engine],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert result.returncode == 1
    (message,) = result.stderr.splitlines()
    assert message.startswith("Error: ")
    assert "batch-size = 500: client " in message
    assert message.endswith("fewer than one batch; use batch-size=287 or less, or fewer clients")
    assert result.stdout == ""  # nothing has started
    assert not runs.exists()


def test_more_clients_than_images_are_refused_by_the_first_client(
    simulate: Simulate,
) -> None:
    run = simulate({}, clients=1500)
    assert run.failure is not None
    reason = "cannot start: The number of clients is 1500, but each client needs an image and "
    assert reason in run.failure
    assert "\n" not in run.failure
    # Flower logs the traceback of every client that raises.
    assert run.log.count("An exception was raised when processing a message") == 1
    assert not run.folder.exists()


def test_the_message_of_a_wrong_value_is_the_last_of_the_log_and_alone(simulate: Simulate) -> None:
    run = simulate({"freeze-after": 99})
    *_, first, second = without_colours(run.log).splitlines()
    assert re.fullmatch(r"ERROR *: *the run config cannot be used:", first)
    assert second.startswith(
        "  freeze-after = 99: T* is beyond the last of 3 rounds; use at most 3,"
    )
    assert "Traceback" not in run.log
    assert not run.folder.exists()


def test_an_unknown_key_starts_no_run(simulate: Simulate) -> None:
    with pytest.raises(SuperLinkError, match=r"the run did not start:(\n.*)*Invalid run config"):
        simulate({"learning-rat": 0.1})


def test_an_interrupted_run_leaves_no_processes(tmp_path: Path) -> None:
    words = [f"output-dir={tmp_path}", "num-server-rounds=100000", "--workers=1", "--engine=ray"]
    with running_fixbn("run", *words, folder=tmp_path) as run:
        home = home_until(run, "round ")
        assert len(processes_of(home)) > 5  # SuperLink, SuperExec, flwr run, simulation, Ray's
        run.send_signal(signal.SIGTERM)
    assert run.returncode == 130  # as after Ctrl-C
    # They were told to end; Ray's take a moment.
    wait_until(lambda: not processes_of(home), "all its processes have ended")
    assert not home.exists()


def test_the_error_of_a_superlink_that_does_not_start_contains_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "flower-superlink"
    program.write_text("#!/bin/sh\necho no room for me\nexit 3\n")
    program.chmod(0o755)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    # Programs are looked up in the folder of the Python executable.
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SuperLinkError, match="did not start:\nno room for me"), local_superlink():
        pytest.fail("it started")
