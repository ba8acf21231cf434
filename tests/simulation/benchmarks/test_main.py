"""The arithmetic of the speed benchmark, and its errors."""

from pathlib import Path

import pytest

from fixbn_flwr.errors import ConfigError
from simulation.benchmarks.__main__ import find_data
from simulation.benchmarks.bare_loop import Variant, variants
from simulation.benchmarks.measured_run import Measurement
from simulation.benchmarks.speed import OURS, QUICK, Speeds, ratios


def test_bare_loops_use_all_cores_in_one_process_and_in_one_per_core_in_both_formats() -> None:
    assert variants(4) == [
        Variant(1, 4, False), Variant(1, 4, True), Variant(4, 1, False), Variant(4, 1, True),
    ]  # fmt: skip
    assert variants(1) == [Variant(1, 1, False), Variant(1, 1, True)]
    assert Variant(2, 1, True).name == "2 processes x 1 thread, channels-last"


def test_the_ratio_is_relative_to_the_fastest_bare_loop() -> None:
    assert ratios({"one": 100.0, "two": 200.0, OURS: 180.0, QUICK: 120.0}) == {
        "b/a": 0.9,
        "b/c": 1.5,
    }


def test_the_report_has_medians_and_samples() -> None:
    speeds = Speeds()
    run = Measurement([1.0], 2.0, 30.0, {"server": 500.0})
    speeds.add("bare", [200.0], 100.0)
    for name, samples in ((OURS, [100.0, 190.0, 180.0]), (QUICK, [120.0])):
        speeds.add(name, samples, 80.0)
        speeds.runs[name].append(run)
    report = speeds.report()
    assert report["images_per_second"] == {"bare": 200.0, OURS: 180.0, QUICK: 120.0}
    assert report["ratios"] == {"b/a": 0.9, "b/c": 1.5}
    assert report["ratios_by_processor_time"] == {"b/a": 0.8, "b/c": 1.0}
    assert report["samples"]["images_per_second"][OURS] == [100.0, 190.0, 180.0]
    lines = speeds.table().splitlines()
    assert lines[2].split() == ["our", "app", "(b)", "180", "80"]
    assert lines[4].split()[-2:] == ["0.90", "0.80"]
    assert lines[-1].split() == ["quickstart", "(c)", "30.0", "s", "500", "0", "0"]


def test_an_error_for_missing_data_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data-dir"):
        find_data(tmp_path)
