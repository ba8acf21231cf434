"""What the README and pyproject.toml say twice is the same there as in the code."""

import json
import re
import statistics
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fixbn_flwr.app.config.settings import Settings, table
from fixbn_flwr.app.runs.reader import read_metrics
from simulation.benchmarks.message_sizes import Cost
from simulation.benchmarks.message_sizes import table as communication_table
from simulation.experiments.experiment import Experiment, Scale
from simulation.experiments.gradients import ALL_LAYERS, explained_share
from simulation.experiments.matching_results import lines_of, searched_rates
from simulation.experiments.result_log import Result, read, results_file
from simulation.reporting.tables import table as table_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_run_config_table_is_the_one_of_the_code() -> None:
    written = re.search(r"<!-- run config -->\n(.*?)\n<!-- end -->", README, re.DOTALL)
    assert written, "README.md has no table between <!-- run config --> and <!-- end -->"
    assert written[1].strip() == table()


def test_the_defaults_of_flwr_run_are_those_of_the_code_in_value_and_type() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    written: dict[str, Any] = project["tool"]["flwr"]["app"]["config"]
    typed = {key: (type(value), value) for key, value in written.items()}
    assert list(typed.items()) == [
        (key, (type(value), value)) for key, value in Settings().as_run_config().items()
    ]


def test_the_two_commands_are_there_and_do_what_the_readme_says() -> None:
    two_commands = README.partition("## Two commands")[2].partition("\n```\n")[0]
    commands = re.findall(r"^(make \w+)", two_commands, re.MULTILINE)
    assert commands == ["make run", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("run", "test"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "$(BIN)/fixbn compare" in makefile
    assert "\nfixbn compare\n" in README
    test_line = re.search(r"`make test` is `(.*)`", README)
    assert test_line
    for command in test_line[1].split(" && "):
        assert command.removeprefix("pytest") in makefile, command
        assert command.split()[0] in makefile, command


def test_every_promise_points_to_a_test_that_is_there() -> None:
    promises = README.partition("## What we promise")[2].partition("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 10
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.split("|")[3])
        assert tests, row
        for file, test in tests:
            assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


def test_the_table_of_bytes_is_the_one_that_was_measured() -> None:
    data = ROOT / "simulation" / "results" / "communication" / "bytes.json"
    costs = [Cost(**cost) for cost in json.loads(data.read_text())["costs"]]
    assert f"<!-- communication -->\n{communication_table(costs)}\n<!-- end -->" in README


def full_size_table() -> str:
    """The table of CIFAR-10's long runs, from their data."""
    results = ROOT / "simulation" / "results" / "cifar10"
    rows = {
        "BN, 0.05": "BN",
        "FixBN, 0.05, a tenth of it from T\\* on": "FixBN",
        "FixBN, 0.05": "FixBN-0.05-factor-1",
        "FixBN, 0.01, a tenth of it after 75 %": "FixBN-0.01-factor-1",
    }
    rounds = (150, 450, 750, 900, 1050, 1200, 1350, 1500)
    lines = [f"| learning rate | {' | '.join(map(str, rounds))} |", "| --- |" + " ---: |" * 8]
    for name, folder in rows.items():
        accuracy = {m.round: m.test_accuracy for m in read_metrics(results / folder)}
        shown = (f"{100 * (accuracy[number] or 0.0):.1f}" for number in rounds)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def test_the_table_of_long_runs_is_the_data() -> None:
    assert f"<!-- full size -->\n{full_size_table()}\n<!-- end -->" in README


DEPLOYMENT = ROOT / "simulation" / "results" / "benchmark" / "deployment.json"


def deployment_table() -> str:
    """The table of seconds outside training, from their data."""
    rows = {
        "before": "as Flower does it",
        "after": "packed arrays, quick looks, workers that stay, momentum in files",
        "bare": "as many bytes there and back, packed, to clients that only add a number",
    }
    lines = ["| | median | each round |", "| --- | ---: | --- |"]
    for name, run in json.loads(DEPLOYMENT.read_text())["runs"].items():
        outside = run["outside"]
        shown = ", ".join(f"{seconds:.1f}" for seconds in outside)
        lines.append(f"| {rows[name]} | {statistics.median(outside):.1f} | {shown} |")
    return "\n".join(lines)


@pytest.mark.skipif(not DEPLOYMENT.exists(), reason="not measured yet, it takes a quiet machine")
def test_the_table_of_seconds_outside_training_is_the_data() -> None:
    assert f"<!-- deployment -->\n{deployment_table()}\n<!-- end -->" in README


def results_of(name: str) -> list[Result]:
    """The results of an experiment at cpu size that its plan asks for."""
    experiment = Experiment(name, Scale.CPU)
    lines = read(results_file(name, "cpu"))
    rate = searched_rates(experiment, lines)
    assert rate is not None, name
    return lines_of(experiment.results(rate), lines)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("normalisers", "main"),
        ("momentum", "main"),
        ("frequency", "main"),
        ("freeze-after", "when"),
    ],
)
def test_the_tables_of_experiments_are_the_data(name: str, grid: str) -> None:
    results = [result for result in results_of(name) if result.grid == grid]
    written = table_of(results, Experiment(name, Scale.CPU).views[grid].x)
    assert f"<!-- {name} -->\n{written}\n<!-- end -->" in README


def means_of(results: Iterable[Result]) -> dict[tuple[str, ...], float]:
    """Accuracy in %, the mean over the seeds, by method and setting."""
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for result in results:
        found[result.method, *result.setting.values()].append(100 * (result.accuracy or 0.0))
    return {place: statistics.fmean(of) for place, of in found.items()}


def test_the_words_on_experiments_are_the_data() -> None:
    words = re.search(r"<!-- segmentation -->(.*?)<!-- end -->", README)
    assert words
    scenes = means_of(results_of("segmentation"))
    shown = [f"{method} {mean:.1f}" for (method, *_), mean in scenes.items()]
    assert words[1] == f"{', '.join(shown)} % mean IoU"
    switch = means_of(r for r in results_of("freeze-after") if r.grid == "switch")
    ends = [f"{switch['FixBN', 'mean', factor]:.1f}" for factor in ("1", "0.3", "0.1", "0.03")]
    assert (
        f"1, 0.3, 0.1 and 0.03 end at {', '.join(ends[:-1])} and {ends[-1]} %<!-- end -->" in README
    )
    for factor in ("1", "0.3", "0.1", "0.03"):
        assert abs(switch["FixBN", "mean", factor] - switch["FixBN", "pooled", factor]) < 1.5
    of = means_of(results_of("normalisers"))
    for same in ("IID", "Dirichlet 0.1"):
        assert abs(of["FixBN", same] - of["BN", same]) < 1.5
        for method in ("GN", "LN", "IN", "FixUp"):
            assert of[method, same] < of["BN", same] - 3
    for method in ("GN", "LN", "IN"):
        assert of["BN", "two classes"] < of[method, "two classes"] < of["FixBN", "two classes"] - 3
    report = results_file("normalisers", "cpu").with_suffix(".md").read_text(encoding="utf-8")
    at_the_edge = re.search(r"In (\d+ of \d+ rows)", report)
    assert at_the_edge
    assert f"in {at_the_edge[1]} the best was" in README.replace("\n  ", " ")
    of = means_of(results_of("frequency"))
    assert of["BN", "1"] + 5 < of["GN", "1"] < of["FixBN", "1"] - 2
    assert of["FixBN", "20"] < of["BN", "20"] - 2


def test_how_far_updates_are_is_the_data() -> None:
    paragraph = README.partition("**Why** (")[2].partition("\n\n")[0].replace("\n", " ")
    results = results_of("gradients")
    mean = {method: of for (method, *_), of in means_of(results).items()}
    for method in ("BN", "GN", "FixBN"):
        assert f"{method} {mean[method]:.1f} %" in paragraph
    share = explained_share(mean["BN"], mean["FixBN"], mean["centralised"])
    assert (
        f"{mean['centralised']:.1f} %, so freezing closes {100 * share:.0f} % of the gap"
        in paragraph
    )
    cosines: dict[tuple[str, int], list[float]] = defaultdict(list)
    for result in results:
        for row in result.extra.get("gradients", []):
            if (row["model"], row["name"]) == ("at T*", ALL_LAYERS):
                cosines[row["mode"], row["local_steps"]].append(row["cosine"])
    for steps in (1, 20):
        for mode in ("BN, statistics of the batch", "BN, frozen statistics"):
            assert f"{statistics.fmean(cosines[mode, steps]):.2f}" in paragraph


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README
