"""The rule on made-up signals; tests/server/test_freeze_decision.py has it in federations."""

from __future__ import annotations

import pytest

from fixbn_flwr.method.freeze_rule import LATEST, TOO_FAR, Decision, FreezeRule
from fixbn_flwr.method.signals import Signals

ROUNDS = 100


def signals(
    norm: float = 1.0, disagreement: float | None = 0.002, agreement: float = 0.25
) -> Signals:
    return Signals(
        mean_disagreement=disagreement,
        variance_disagreement=disagreement,
        update_norm=norm,
        update_agreement=agreement,
    )


def decided(*phases: tuple[int, Signals]) -> tuple[int, Decision] | None:
    """Return the round of the decision and the decision, for signals until a round each."""
    rule, server_round = FreezeRule(ROUNDS), 0
    for until, of_round in phases:
        while server_round < until:
            server_round += 1
            rule.observe(server_round, of_round)
            decision = rule.decide(server_round)
            if decision is not None:
                return server_round, decision
    return None


def test_it_freezes_when_updates_have_become_smaller_in_the_second_half() -> None:
    found = decided((60, signals(1.0)), (100, signals(0.1)))
    assert found is not None
    server_round, decision = found
    assert (server_round, decision.freezes) == (62, True)  # the median of three rounds
    assert decision.reason == (
        "the clients' updates have become smaller (10% of their largest), and clients' statistics "
        "differ by 0.002 and their updates agree 0.25 times as much as unrelated ones"
    )


def test_it_does_not_freeze_in_the_first_half() -> None:
    found = decided((20, signals(1.0)), (100, signals(0.1)))
    assert found is not None
    assert found[0] == 50


def test_it_freezes_late_if_updates_stay_as_large_as_they_were() -> None:
    found = decided((100, signals(1.0)))
    assert found is not None
    assert (found[0], found[1].freezes) == (LATEST * ROUNDS, True)
    assert found[1].reason.startswith("80% of the rounds are done, and clients' statistics differ")


def test_it_never_freezes_if_clients_drift_too_far() -> None:
    found = decided((100, signals(disagreement=1.1 * TOO_FAR)))
    assert found is not None
    assert not found[1].freezes
    assert found[1].reason.endswith(": too far for one average")


@pytest.mark.parametrize("disagreement", [0.002, 2 * TOO_FAR])
def test_it_never_freezes_if_updates_agree(disagreement: float) -> None:
    found = decided((100, signals(disagreement=disagreement, agreement=1.1)))
    assert found is not None
    assert not found[1].freezes
    assert found[1].reason.endswith("as unrelated ones: they learn the same without")


def test_it_never_freezes_without_statistics() -> None:
    found = decided((100, signals(disagreement=None)))
    assert found == (80, Decision(False, "no client returned statistics"))


def test_the_first_rounds_do_not_count() -> None:
    wild = signals(norm=50.0, disagreement=1.0, agreement=9.0)
    found = decided((10, wild), (100, signals(1.0)))
    assert found is not None
    assert (found[0], found[1].freezes) == (80, True)


def test_a_restored_rule_decides_the_same() -> None:
    whole, first = FreezeRule(ROUNDS), FreezeRule(ROUNDS)
    for server_round in range(1, 41):
        whole.observe(server_round, signals(1.0))
        first.observe(server_round, signals(1.0))
    second = FreezeRule(ROUNDS)
    second.restore(first.state())
    for server_round in range(41, 60):
        for rule in (whole, second):
            rule.observe(server_round, signals(0.3))
        assert second.decide(server_round) == whole.decide(server_round)
    assert whole.decide(59) is not None


@pytest.mark.parametrize(
    ("disagreement", "agreement", "outlook"),
    [(0.002, 0.25, "help"), (0.002, 1.5, "make no difference"), (0.1, 0.25, "hurt")],
)
def test_the_outlook_says_what_freezing_would_do(
    disagreement: float, agreement: float, outlook: str
) -> None:
    rule = FreezeRule(ROUNDS)
    assert rule.outlook() is None
    rule.observe(50, signals(disagreement=disagreement, agreement=agreement))
    assert rule.outlook() == outlook
