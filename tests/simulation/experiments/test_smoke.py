"""All experiments at the smallest scale, from the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from simulation.experiments.experiment import Experiment, Scale, names
from simulation.experiments.result_log import read, results_file

REPOSITORY = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


def typed(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "simulation.experiments", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", names())
def test_an_experiment_runs_and_reports(name, tmp_path):
    folders = ["--output", str(tmp_path / "results")]
    shown = typed("run", name, "--scale", "smoke", *folders, "--folders", str(tmp_path / "runs"))

    experiment = Experiment(name, Scale.SMOKE)
    lines = read(results_file(name, "smoke", tmp_path / "results"))
    results = [line for line in lines if line.kind == "result"]
    assert len(results) == len(experiment.outline())
    assert not any(result.failure for result in results)
    for grid in experiment.grids:
        assert (tmp_path / "results" / name / f"smoke-{grid}.png").stat().st_size > 10_000
    if experiment.measure:
        assert (tmp_path / "results" / name / "smoke-updates.png").stat().st_size > 10_000
        rows = [row for result in results for row in result.extra.get("gradients", [])]
        assert {row["round"] for row in rows if row["method"] == "FixBN"} == {0, 2, 4}
        frozen = [r for r in rows if (r["mode"], r["local_steps"]) == ("frozen statistics", 1)]
        assert frozen
        assert all(row["distance"] < 1e-6 for row in frozen)
    # The table on the console, and the report from the results alone.
    assert results[0].method in shown
    report = tmp_path / "results" / name / "smoke.md"
    written = report.read_text()
    assert results[0].method in written
    if experiment.measure:  # once, since it takes seconds to start
        report.unlink()
        typed("report", name, "--scale", "smoke", *folders)
        assert report.read_text() == written


def test_an_error_is_a_message_and_exit_code_1():
    done = subprocess.run(
        [sys.executable, "-m", "simulation.experiments", "run", "nothing"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("Error: no experiment 'nothing': choose one of ")
