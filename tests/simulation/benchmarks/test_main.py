"""The benchmark's arithmetic; that it runs and how fast is for a quiet machine to tell."""

import os

import pytest

from fixbn_flwr.errors import ConfigError
from simulation.benchmarks.__main__ import OURS, QUICK, find_data, ratios
from simulation.benchmarks.bare_loop import Variant, variants
from simulation.benchmarks.process_monitor import (
    Process,
    descendants,
    merge_peaks,
    parse,
    processes,
)


def test_bare_loops_use_all_cores_in_one_process_and_in_one_per_core_in_both_formats():
    assert variants(4) == [
        Variant(1, 4, False), Variant(1, 4, True), Variant(4, 1, False), Variant(4, 1, True),
    ]  # fmt: skip
    assert variants(1) == [Variant(1, 1, False), Variant(1, 1, True)]
    assert Variant(2, 1, True).name == "2 processes x 1 thread, channels-last"


def test_ratio_is_to_the_fastest_bare_loop():
    assert ratios({"one": 100.0, "two": 200.0, OURS: 180.0, QUICK: 120.0}) == {
        "b/a": 0.9,
        "b/c": 1.5,
    }


def test_missing_data_is_named_with_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match="--data-dir"):
        find_data(tmp_path)


def test_process_is_read_from_proc():
    status = "Name:\tray::X\nPid:\t7\nPPid:\t3\nVmHWM:\t   1000 kB\n"
    stat = "7 (ray::X (y)) S 3 7 7 0 -1 0 0 0 0 0 250 50 0 0"
    ticks = os.sysconf("SC_CLK_TCK")
    found = parse(status, stat, "ray::ClientAppActor.run\0\0")
    assert found == Process(7, 3, "ray::ClientAppActor.run", 1.024, 300 / ticks)
    assert found.role == "worker"
    assert parse("Name:\tkthreadd\nPid:\t2\nPPid:\t0\n", stat, "") is None


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/x/python /x/bin/flwr-simulation --token y", "server"),
        ("ray::ClientAppActor", "worker"),
        ("ray::IDLE", "ray"),
        ("/x/site-packages/ray/core/src/ray/raylet/raylet", "ray"),
        ("/x/python /x/bin/flower-superlink", "other"),
    ],
)
def test_role_of_a_process(command, role):
    assert Process(1, 0, command, 1.0, 0.0).role == role


def test_descendants_leave_out_other_programs():
    tree = [Process(pid, parent, "", 1.0, 0.0) for pid, parent in [(2, 1), (3, 2), (4, 9), (5, 3)]]
    assert [process.pid for process in descendants(1, tree)] == [2, 3, 5]


def test_peak_is_of_the_largest_worker_and_of_all_of_ray():
    def process(command: str, megabytes: float) -> Process:
        return Process(1, 0, command, megabytes, 0.0)

    peaks = {"worker": 400.0}
    worker, idle = "ray::ClientAppActor", "ray::IDLE"
    merge_peaks(
        peaks,
        [process(worker, 300.0), process(worker, 500.0), process(idle, 50.0), process(idle, 60.0)],
    )
    merge_peaks(peaks, [])
    assert peaks == {"worker": 500.0, "ray": 110.0}


def test_this_process_is_among_all():
    assert os.getpid() in [process.pid for process in processes()]
