"""The tables and claims of docs/when-to-freeze.md are the committed data."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict

import pytest

from fixbn_flwr.method import freeze_rule, guard
from simulation.experiments.result_log import Result
from tests.support.experiment_results import finished_results_of
from tests.support.pages import ROOT, marked, page

PAGE = page("when-to-freeze.md")
FIXED = ("T* 25 %", "T* 50 %", "T* 75 %")
COLUMNS = ("never", *FIXED, "auto")


def by_setting(grid: str) -> dict[str, dict[str, list[Result]]]:
    found: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in finished_results_of("freeze-rule"):
        if result.grid == grid:
            found[result.setting[grid]][result.method].append(result)
    return found


def mean(results: list[Result]) -> float:
    return statistics.fmean(100 * (result.accuracy or 0.0) for result in results)


def decision(results: list[Result]) -> str:
    said = []
    for result in results:
        rounds = int(result.run_config["num-server-rounds"])
        frozen = result.freeze_round
        assert frozen is not None
        said.append("never" if frozen >= rounds else f"{100 * frozen / rounds:.0f} %")
    return ", ".join(dict.fromkeys(said))


def rule_table(grid: str) -> str:
    """Return the table of a grid: accuracies in %, their number of seeds, and T* of the rule."""
    heads = ["never", "25 %", "50 %", "75 %", "auto"]
    lines = [f"| setting | seeds | {' | '.join(heads)} | the rule's T\\* |"]
    lines.append("| --- | ---: |" + " ---: |" * 5 + " --- |")
    for setting, methods in by_setting(grid).items():
        seeds = {len(methods[method]) for method in COLUMNS}
        assert len(seeds) == 1, (setting, seeds)
        cells = " | ".join(f"{mean(methods[method]):.1f}" for method in COLUMNS)
        lines.append(f"| {setting} | {seeds.pop()} | {cells} | {decision(methods['auto'])} |")
    return "\n".join(lines)


@pytest.mark.parametrize("grid", ["tuned", "validated"])
def test_the_tables_are_the_data(grid: str) -> None:
    assert marked(PAGE, grid) == rule_table(grid)


def digits_table() -> str:
    """Return the table of the runs on digits."""
    runs = json.loads((ROOT / "simulation/results/freeze-rule/digits.json").read_text())["runs"]
    found: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for run in runs:
        factor = "-" if run["what"] == "plain BN" else f"{run['factor']:g}"
        found[run["what"], factor].append((run["seed"], 100 * run["final_accuracy"]))
    lines = ["| run | factor | seeds 0, 1, ... |", "| --- | ---: | --- |"]
    for (what, factor), values in sorted(found.items()):
        shown = ", ".join(f"{accuracy:.1f}" for _, accuracy in sorted(values))
        lines.append(f"| {what} | {factor} | {shown} |")
    return "\n".join(lines)


def test_the_runs_on_digits_are_the_data() -> None:
    assert marked(PAGE, "digits") == digits_table()


def test_the_rule_is_within_its_aim_except_where_the_page_says_so() -> None:
    """Within a point of the best, and never more than a point behind plain BN."""
    behind = []
    for grid in ("tuned", "validated"):
        for setting, methods in by_setting(grid).items():
            best = max(mean(methods[method]) for method in COLUMNS)
            rule = mean(methods["auto"])
            if best - rule > 1.0 or mean(methods["never"]) - rule > 1.0:
                behind.append(setting)
    assert [line for line in marked(PAGE, "behind").split("; ") if line != "none"] == behind


def test_the_numbers_of_the_rule_and_the_guard_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert f"after the first {_part(freeze_rule.WARM_UP)} of the rounds" in text
    assert f"If it is above {freeze_rule.TOO_FAR:g}," in text
    assert (freeze_rule.EARLIEST, freeze_rule.UNRELATED) == (0.5, 1.0)
    assert f"or at {freeze_rule.LATEST:.0%}".replace("%", " %") + " of the rounds" in text
    assert freeze_rule.SMALLER == 0.5
    assert f"shorter than {100 * freeze_rule.MUCH_SMALLER:.0f} % of the longest" in text
    assert f"a {_part(guard.SHARE)} of all rounds, ten at least" in text
    assert (guard.SHORTEST, guard.TRIES) == (10, 3)
    assert f"with {guard.SLOWER:g} times the rate, at most three times" in text


def _part(share: float) -> str:
    return {0.1: "tenth"}[share]
