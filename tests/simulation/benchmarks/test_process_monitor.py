"""The processes of a run: their roles and their peak memory."""

import os
import subprocess
import sys

import pytest

from simulation.benchmarks.process_monitor import Process, descendants, merge_peaks
from tests.support.waiting import wait_until


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/x/python /x/bin/flwr-simulation --token y", "server"),
        ("/x/python /x/bin/fixbn run --engine local --clients 10", "server"),
        ("/x/python /x/bin/fixbn run --engine ray --clients 10", "other"),
        ("ray::ClientAppActor", "worker"),
        ("/x/python -c from multiprocessing.forkserver import main; main(3, 5)", "worker"),
        ("ray::IDLE", "ray"),
        ("/x/site-packages/ray/core/src/ray/raylet/raylet", "ray"),
        ("/x/python /x/bin/flower-superlink", "other"),
    ],
)
def test_a_role_follows_from_the_command(command: str, role: str) -> None:
    assert Process(1, command, 1.0, 0.0).role == role


def with_commands(expected: list[int]) -> dict[int, Process] | None:
    """Return the descendants by their id, once the expected ones have a command line."""
    found = {one.pid: one for one in descendants()}
    return found if all(pid in found and found[pid].command for pid in expected) else None


def test_descendants_are_children_and_grandchildren_with_their_peak_memory() -> None:
    child = (
        "import subprocess, sys; b = bytearray(100_000_000); sum(range(10**6)); del b;"
        "grandchild = subprocess.Popen(['cat'], stdin=subprocess.PIPE);"
        "print(grandchild.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        # The kernel shows a new program's command line a moment after it has started.
        found = wait_until(
            lambda: with_commands([process.pid, grandchild]), "both processes have a command line"
        )
        process.communicate()
    assert os.getpid() not in found
    assert found[process.pid].peak_megabytes > 100  # though it is freed
    assert found[process.pid].seconds > 0
    assert found[process.pid].command.startswith(f"{sys.executable} -c import subprocess")
    assert (found[grandchild].command, found[grandchild].role) == ("cat", "other")


def test_a_process_without_memory_is_left_out() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie until it is reaped
        assert process.pid not in [one.pid for one in descendants()]


def test_the_peak_is_that_of_the_largest_worker_and_the_sum_for_ray() -> None:
    def process(command: str, megabytes: float) -> Process:
        return Process(1, command, megabytes, 0.0)

    peaks = {"worker": 400.0}
    worker, idle = "ray::ClientAppActor", "ray::IDLE"
    merge_peaks(
        peaks,
        [process(worker, 300.0), process(worker, 500.0), process(idle, 50.0), process(idle, 60.0)],
    )
    merge_peaks(peaks, [])
    assert peaks == {"worker": 500.0, "ray": 110.0}
