"""Tables, figures and numbers of docs/results.md are the committed data."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict

import pytest

from fixbn_flwr.app.runs.reader import read_metrics
from simulation.experiments.experiment import Experiment, Scale
from simulation.experiments.gradients import ALL_LAYERS, explained_share
from simulation.experiments.result_log import results_file
from simulation.reporting.tables import table
from tests.support.experiment_results import means_of, results_of
from tests.support.pages import DOCS, ROOT, marked, page

PAGE = page("results.md")
RESULTS = ROOT / "simulation" / "results"


def full_size_table() -> str:
    """The table of CIFAR-10's long runs, from their data."""
    rows = {
        "BN, 0.05": "BN",
        "FixBN, 0.05, a tenth of it from T\\* on": "FixBN",
        "FixBN, 0.05": "FixBN-0.05-factor-1",
        "FixBN, 0.01, a tenth of it after 75 %": "FixBN-0.01-factor-1",
    }
    rounds = (150, 450, 750, 900, 1050, 1200, 1350, 1500)
    lines = [f"| learning rate | {' | '.join(map(str, rounds))} |", "| --- |" + " ---: |" * 8]
    for name, folder in rows.items():
        accuracy = {m.round: m.test_accuracy for m in read_metrics(RESULTS / "cifar10" / folder)}
        shown = (f"{100 * (accuracy[number] or 0.0):.1f}" for number in rounds)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def test_the_table_of_long_runs_is_the_data() -> None:
    assert marked(PAGE, "full size") == full_size_table()


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
    assert marked(PAGE, name) == table(results, Experiment(name, Scale.CPU).views[grid].x)


@pytest.mark.parametrize(
    ("figure", "source"),
    [
        ("normalisers.png", "normalisers/cpu-main.png"),
        ("frequency.png", "frequency/cpu-main.png"),
        ("freeze-after.png", "freeze-after/cpu-when.png"),
    ],
)
def test_the_figures_are_copies_of_the_results(figure: str, source: str) -> None:
    assert (DOCS / "figures" / figure).read_bytes() == (RESULTS / source).read_bytes()


def test_the_numbers_in_the_text_are_the_data() -> None:
    scenes = means_of(results_of("segmentation"))
    shown = [f"{method} {mean:.1f}" for (method, *_), mean in scenes.items()]
    assert marked(PAGE, "segmentation") == f"{', '.join(shown)} % mean IoU"
    switch = means_of(r for r in results_of("freeze-after") if r.grid == "switch")
    ends = [f"{switch['FixBN', 'mean', factor]:.1f}" for factor in ("1", "0.3", "0.1", "0.03")]
    assert (
        marked(PAGE, "switch")
        == f"1, 0.3, 0.1 and 0.03 end at {', '.join(ends[:-1])} and {ends[-1]} %"
    )
    report = results_file("normalisers", "cpu").with_suffix(".md").read_text(encoding="utf-8")
    at_the_edge = re.search(r"In (\d+ of \d+ rows)", report)
    assert at_the_edge
    assert f"in {at_the_edge[1]} the best was" in PAGE.replace("\n  ", " ")


def test_pooled_variances_change_little() -> None:
    switch = means_of(r for r in results_of("freeze-after") if r.grid == "switch")
    for factor in ("1", "0.3", "0.1", "0.03"):
        assert abs(switch["FixBN", "mean", factor] - switch["FixBN", "pooled", factor]) < 1.5


def test_fixbn_gains_and_ties_where_the_page_says() -> None:
    mean = means_of(results_of("normalisers"))
    for same in ("IID", "Dirichlet 0.1"):
        assert abs(mean["FixBN", same] - mean["BN", same]) < 1.5
        for method in ("GN", "LN", "IN", "FixUp"):
            assert mean[method, same] < mean["BN", same] - 3
    for method in ("GN", "LN", "IN"):
        other = mean[method, "two classes"]
        assert mean["BN", "two classes"] < other < mean["FixBN", "two classes"] - 3
    mean = means_of(results_of("frequency"))
    assert mean["BN", "1"] + 5 < mean["GN", "1"] < mean["FixBN", "1"] - 2
    assert mean["FixBN", "20"] < mean["BN", "20"] - 2


def test_the_distance_of_updates_is_the_data() -> None:
    paragraph = PAGE.partition("## Why it helps")[2].replace("\n", " ")
    results = results_of("gradients")
    mean = {method: value for (method, *_), value in means_of(results).items()}
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
