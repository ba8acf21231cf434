"""The arithmetic and the tables of the benchmark, its start-up part, and its errors."""

from pathlib import Path

import pytest

from fixbn_flwr.errors import ConfigError
from simulation.benchmarks.__main__ import find_data
from simulation.benchmarks.bare_loop import Variant, variants
from simulation.benchmarks.measured_run import Measurement
from simulation.benchmarks.peak_memory import memory_table
from simulation.benchmarks.speed import ENGINE, Speeds
from simulation.benchmarks.start_up import start_table

BARE = "2 processes x 1 thread, channels-last"


def test_bare_loops_use_all_cores_in_one_process_and_in_one_per_core_in_both_formats() -> None:
    assert variants(4) == [
        Variant(1, 4, False), Variant(1, 4, True), Variant(4, 1, False), Variant(4, 1, True),
    ]  # fmt: skip
    assert variants(1) == [Variant(1, 1, False), Variant(1, 1, True)]
    assert Variant(2, 1, True).name == BARE


@pytest.fixture
def speeds() -> Speeds:
    speeds = Speeds(workers=2)
    for steps, bare, engine in ((1, (0.2, 0.3, 0.1), (0.4, 0.5, 0.3)), (20, (4.0,), (4.2,))):
        for value in bare:
            speeds.add(steps, BARE, value)
        for value in engine:
            speeds.add(steps, ENGINE, value)
    return speeds


def test_the_ratio_is_that_of_the_medians_to_the_bare_loop_of_the_same_kind(speeds: Speeds) -> None:
    assert speeds.median(1, ENGINE) == 0.4
    assert speeds.ratio(1, ENGINE) == 2.0
    assert speeds.ratio(20, ENGINE) == 1.05


def test_the_report_has_samples_medians_and_ratios(speeds: Speeds) -> None:
    report = speeds.report()
    assert report["reference"] == BARE
    assert report["steps"]["1"][ENGINE] == {"seconds": [0.4, 0.5, 0.3], "median": 0.4, "ratio": 2.0}


def test_the_tables_show_the_spread(speeds: Speeds) -> None:
    lines = speeds.table().splitlines()
    assert lines[0].split() == ["seconds", "a", "round", "1", "steps", "20", "steps"]
    assert lines[2].startswith(ENGINE)
    assert lines[2].split()[-6:] == ["0.40", "(0.30-0.50)", "2.00x", "4.20", "(4.20-4.20)", "1.05x"]
    assert start_table({"imports": [3.0, 5.0, 4.0]}).splitlines()[1].split() == [
        "imports", "4.0", "(3.0-5.0)",
    ]  # fmt: skip
    run = Measurement([0.2, 0.4, 0.3], 2.0, 30.0, {"server": 500.0, "worker": 400.0})
    assert memory_table({10_000: run}).splitlines()[1].split() == [
        "10,000", "500", "400", "30.0", "s", "0.30", "s",
    ]  # fmt: skip


def test_an_error_for_missing_data_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data-dir"):
        find_data(tmp_path)
