"""The runner: each run executes once, and an interrupted experiment resumes."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from fixbn_flwr.errors import ConfigError
from simulation.experiments.experiment import Experiment, Scale
from simulation.experiments.result_log import Result, append, read, results_file
from simulation.experiments.runner import Runner
from simulation.experiments.single_run import execute
from simulation.reporting.markdown_report import write_report

EXPERIMENT = """
title = "Does it run?"
[base]
task = "digits"
batch-size = 4
local-steps = 1
evaluate-every = 1
[methods.BN]
freeze-after = 1.0
[methods.FixBN]
freeze-after = 0.5
[methods.centralised]
central = true
[axes.partition]
"two classes" = { partition = "classes" }
[grids.main]
axes = ["partition"]
methods = ["BN", "FixBN", "centralised"]
[grids.main.view]
kind = "points"
title = "Accuracy"
x = "partition"
x_label = "clients' data"
[grids.again]
axes = ["partition"]
methods = ["FixBN"]
[grids.again.view]
kind = "points"
title = "The same run in another grid"
x = "partition"
x_label = "clients' data"
[scales.smoke]
seeds = [0]
clients = 2
local-steps-in-all = 4
search-share = 0.5
search-axes = []
evaluations = 2
learning-rates = [0.01, 0.05]
"""
MACHINE = {"device": "cpu", "data-dir": ""}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "common.toml").write_text("")
    (folder / "it.toml").write_text(EXPERIMENT)
    return Experiment("it", Scale.SMOKE, folder)


@pytest.fixture(scope="module")
def made(experiment, tmp_path_factory) -> Path:
    """A folder with the completed experiment; tests that change it use `copied`."""
    folder = tmp_path_factory.mktemp("made")
    runner(experiment, folder).run()
    return folder


@pytest.fixture
def copied(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def runner(experiment: Experiment, folder: Path) -> Runner:
    return Runner(experiment, folder / "results", folder / "runs", 1, MACHINE)


def lines_of(folder: Path) -> list[Result]:
    return read(results_file("it", "smoke", folder / "results"))


def test_a_run_has_a_run_folder_and_a_result(experiment, tmp_path):
    (bn, fixbn, central, again) = experiment.results(lambda *_: 0.05)
    assert again.id == fixbn.id
    folder = tmp_path / "runs" / fixbn.id
    result = execute(fixbn, folder, MACHINE, "typed")

    assert (folder / "final.safetensors").exists()
    assert (folder / "log.txt").read_text().count("calibration") == 2
    assert not folder.with_suffix(".log").exists()
    config = json.loads((folder / "config.json").read_text())
    assert config["method"] == "FixBN"
    assert config["freeze_round"] == 2
    assert sorted(result.accuracies) == [2, 4]
    assert result.accuracy == result.accuracies[4]
    assert result.command == "typed"
    assert result.client_state_bytes > 0
    assert result.bytes_sent > 50_000
    assert not result.diverged
    assert execute(bn, tmp_path / "bn", MACHINE, "").accuracies[2] == result.accuracies[2]
    assert execute(central, tmp_path / "central", MACHINE, "").bytes_sent == 0


def test_a_repeated_run_has_the_same_bits_and_replaces_an_unfinished_folder(experiment, tmp_path):
    run = experiment.results(lambda *_: 0.05)[1]
    folder = tmp_path / "runs" / run.id
    execute(run, folder, MACHINE, "")
    model = (folder / "final.safetensors").read_bytes()
    (folder / "summary.json").unlink()
    (folder / "final.safetensors").unlink()
    execute(run, folder, MACHINE, "")

    assert (folder / "final.safetensors").read_bytes() == model


def test_a_run_that_diverges_has_a_result(experiment, tmp_path):
    run = experiment.results(lambda *_: 1e12)[0]
    result = execute(run, tmp_path / "runs" / run.id, MACHINE, "")

    assert result.diverged
    assert result.accuracy is None or result.accuracy < 0.3


def test_an_error_is_not_a_result(experiment, tmp_path):
    run = experiment.results(lambda *_: 0.05)[0]

    with pytest.raises(ConfigError, match="this machine has 0 CUDA devices"):
        execute(run, tmp_path / "runs" / run.id, {"device": "cuda:7"}, "")


def test_an_experiment_from_its_search_to_its_report(experiment, copied):
    lines = lines_of(copied)
    searches = [line for line in lines if line.kind == "search"]
    results = [line for line in lines if line.kind == "result"]
    assert len(searches) >= 6
    # A run in two grids executes once.
    assert [(result.grid, result.method) for result in results] == [
        ("main", "BN"), ("main", "FixBN"), ("again", "FixBN"), ("main", "centralised"),
    ]  # fmt: skip
    assert len(list((copied / "runs").glob("it/smoke/*/summary.json"))) == len(searches) + 3
    for result in results:
        tried = {
            line.learning_rate: line.accuracy for line in searches if line.method == result.method
        }
        assert tried[result.learning_rate] == max(tried.values())
        rates = sorted(tried)  # the best lies inside, or on a plateau
        at = rates.index(result.learning_rate)
        for edge, neighbour in ((0, 1), (len(rates) - 1, -2)):
            assert at != edge or tried[rates[neighbour]] == tried[result.learning_rate]

    report = write_report(experiment, copied / "results").read_text()
    assert "4 of 4 runs" in report
    assert (copied / "results" / "it" / "smoke-main.png").exists()
    for result in results:
        assert f"| {result.method} | {100 * result.accuracy:.1f} (1) |" in report


def test_completed_runs_are_not_repeated(experiment, copied):
    before = lines_of(copied)
    folders = {path: path.stat().st_mtime_ns for path in (copied / "runs").rglob("*")}

    assert runner(experiment, copied).run() == before
    assert {path: path.stat().st_mtime_ns for path in (copied / "runs").rglob("*")} == folders


def test_only_a_run_without_a_result_is_repeated(experiment, copied):
    before = lines_of(copied)
    path = results_file("it", "smoke", copied / "results")
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    again = runner(experiment, copied).run()

    assert again[:-1] == before[:-1]
    assert again[-1].id == before[-1].id
    assert again[-1].accuracies == before[-1].accuracies


def test_results_of_another_experiment_are_copied(experiment, copied):
    before = lines_of(copied)
    results_file("it", "smoke", copied / "results").unlink()
    other = results_file("other", "smoke", copied / "results")
    for line in before:
        append(other, dataclasses.replace(line, grid="theirs", method=line.method.lower()))

    taken = runner(experiment, copied).run()
    assert len(taken) == len(before)
    assert all(line in before for line in taken)
    assert read(other)[0].grid == "theirs"


def test_a_report_does_not_depend_on_the_order_of_completion(experiment, copied):
    before = write_report(experiment, copied / "results").read_text()
    path = results_file("it", "smoke", copied / "results")
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")

    again = write_report(experiment, copied / "results").read_text()
    assert again.partition("## Learning rates")[0] == before.partition("## Learning rates")[0]


def test_the_error_of_an_empty_report_names_the_command(experiment, tmp_path):
    command = r"python -m simulation\.experiments run it --scale smoke"
    with pytest.raises(ConfigError, match=command):
        write_report(experiment, tmp_path)
