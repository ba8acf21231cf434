"""The numbers in the text of docs/when-to-freeze.md are those of the code."""

from __future__ import annotations

from fixbn_flwr.method import freeze_rule, guard
from tests.support.pages import page

PAGE = page("when-to-freeze.md")


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
