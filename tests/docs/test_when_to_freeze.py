"""The numbers in the text of docs/when-to-freeze.md are those of the code."""

from __future__ import annotations

import json
import statistics

from fixbn_flwr.method import freeze_rule, guard
from tests.support.pages import ROOT, page

PAGE = page("when-to-freeze.md")


def test_the_numbers_of_the_rule_and_the_guard_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    assert f"after the first {_part(freeze_rule.WARM_UP)} of the rounds" in text
    assert f"If it is above {freeze_rule.TOO_FAR:g}," in text
    assert (freeze_rule.EARLIEST, freeze_rule.UNRELATED) == (0.5, 1.0)
    assert f"or at {freeze_rule.LATEST:.0%}".replace("%", " %") + " of the rounds" in text
    assert freeze_rule.SMALLER == 0.5
    assert f"shorter than {100 * freeze_rule.MUCH_SMALLER:.0f} % of the longest" in text
    assert f"{100 * guard.SHARE:.0f} % of all rounds, at least ten" in text
    assert (guard.SHORTEST, guard.TRIES) == (10, 3)
    assert f"with {guard.SLOWER:g} times the rate, at most three times" in text


def test_the_mean_of_the_runs_on_digits_is_the_data() -> None:
    file = ROOT / "simulation" / "results" / "freeze-rule" / "digits.json"
    runs = json.loads(file.read_text(encoding="utf-8"))["runs"]
    fixed = [r for r in runs if (r["what"], r["factor"]) == ("fixed factor, no ramp", 0.3)]
    mean = 100 * statistics.fmean(run["final_accuracy"] for run in fixed)
    assert f"factor 0.3 ends at {mean:.1f} % on average" in " ".join(PAGE.split())


def _part(share: float) -> str:
    return {0.1: "tenth"}[share]
