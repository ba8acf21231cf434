from __future__ import annotations

import math

import pytest

from fixbn_flwr.method.guard import Guard
from fixbn_flwr.method.signals import Signals

T = 20


def signals(loss: float | None, norm: float = 1.0) -> Signals:
    return Signals(train_loss=loss, update_norm=norm)


def guard(num_rounds: int = 40, losses: tuple[float | None, ...] = (2.0, 0.6, 0.5, 0.4)) -> Guard:
    """Return a guard after exploration, with updates of length 1 and these losses."""
    watching = Guard(num_rounds, enabled=True)
    for loss in losses:
        watching.observe(signals(loss))
    return watching


def failed(watching: Guard, *rounds: Signals) -> list[bool]:
    return [watching.has_failed(of_round, diverged=False) for of_round in rounds]


def test_a_loss_that_rises_with_the_switch_and_falls_again_is_no_failure() -> None:
    losses = (1.9, 1.5, 1.0, 0.8, 0.9)
    assert failed(guard(), *(signals(loss) for loss in losses)) == [False] * 5


def test_much_longer_updates_in_the_first_round_are_a_failure() -> None:
    assert failed(guard(), signals(0.5, 1.6)) == [True]
    assert failed(guard(), signals(0.5, 1.4)) == [False]


def test_later_updates_may_grow_as_momentum_does() -> None:
    norms = (1.0, 2.0, 3.0, 3.9)
    assert failed(guard(), *(signals(0.5, norm) for norm in norms)) == [False] * 4
    assert failed(guard(), signals(0.5, 1.0), signals(0.5, 4.1)) == [False, True]


def test_the_first_update_may_be_longer_after_less_than_three_rounds_of_exploration() -> None:
    """Updates still grow with the momentum, from zero."""
    assert failed(guard(losses=(2.0, 0.6)), signals(0.5, 1.9)) == [False]
    assert failed(guard(losses=(2.0, 0.6)), signals(0.5, 4.1)) == [True]


def test_without_exploration_only_nan_is_a_failure() -> None:
    watching = guard(losses=())
    assert failed(watching, signals(0.5, 1.0), signals(9.0, 9.0), signals(9.0)) == [False] * 3
    assert watching.has_failed(None, diverged=True)


def test_a_loss_that_stays_above_that_of_the_switch_is_a_failure() -> None:
    assert failed(guard(), signals(1.0), signals(1.11), signals(1.12)) == [False, False, True]
    assert failed(guard(), signals(1.0), signals(1.2), signals(1.0), signals(1.2)) == [False] * 4
    assert failed(guard(), signals(1.0), signals(1.09), signals(1.09)) == [False] * 3


def test_a_first_loss_that_is_low_by_chance_is_not_the_measure() -> None:
    assert failed(guard(), signals(0.3), signals(0.5), signals(0.5)) == [False] * 3
    assert failed(guard(), signals(0.3), signals(0.67), signals(0.67)) == [False, True, True]


def test_losing_what_was_learned_since_the_switch_is_a_failure() -> None:
    assert failed(guard(), signals(0.9), signals(0.3), signals(0.85)) == [False] * 3
    assert failed(guard(), signals(0.9), signals(0.3), signals(0.95)) == [False, False, True]
    assert failed(guard(), signals(0.9), signals(0.6), signals(0.95)) == [False] * 3  # noise


NEGATIVE = (-0.2, -0.88, -0.9, -0.89)


@pytest.mark.parametrize(
    "losses",
    [(-0.9, -0.91, -0.92, -0.93), (-0.6, -0.7, -0.8, -0.9), (-0.9, -0.8, -0.8), (1.0, -0.5, 0.9)],
)
def test_a_loss_below_zero_that_falls_or_is_noisy_is_no_failure(losses: tuple[float, ...]) -> None:
    assert failed(guard(losses=NEGATIVE), *map(signals, losses)) == [False] * len(losses)


@pytest.mark.parametrize("losses", [(-0.9, -0.7, -0.7), (-0.6, -0.9, 0.1), (1.0, -0.5, 1.05)])
def test_a_loss_below_zero_that_rises_is_a_failure(losses: tuple[float, ...]) -> None:
    assert failed(guard(losses=NEGATIVE), *map(signals, losses)) == [False, False, True]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_failure(loss: float) -> None:
    assert failed(guard(), signals(loss)) == [True]


def test_a_round_of_exploration_without_a_finite_loss_does_not_count() -> None:
    watching = guard(losses=(0.9, math.nan, math.inf, math.nan))
    assert failed(watching, signals(0.5), signals(0.9), signals(0.9)) == [False] * 3
    watching = guard(losses=(0.5, math.inf))
    assert failed(watching, signals(0.5), signals(0.9), signals(0.9)) == [False, False, True]


def test_without_a_loss_the_updates_tell() -> None:
    watching = guard(losses=(None, None, None))
    assert failed(watching, signals(None, 1.0), signals(None, 3.0), signals(None, 4.1)) == [
        False, False, True,
    ]  # fmt: skip


def test_nan_in_most_replies_is_a_failure_and_no_reply_is_none() -> None:
    assert guard().has_failed(None, diverged=True)
    assert not guard().has_failed(None, diverged=False)


def test_ten_rounds_are_watched_or_a_tenth_of_all() -> None:
    assert [r for r in range(T + 1, 41) if guard(40).watches(r, T)] == list(range(21, 31))
    assert [r for r in range(T + 1, 99) if guard(200).watches(r, T)] == list(range(21, 41))
    assert not Guard(40, enabled=False).watches(T + 1, T)


def test_each_retry_is_watched_anew_until_three_have_failed() -> None:
    watching = guard()
    said = []
    for server_round in (21, 25, 30, 33):
        assert watching.watches(server_round, T)
        said.append(watching.go_back(server_round, T))
        assert watching.discarded == (T, server_round)
    assert said == [
        "try 1 of 3 begins, with 0.3 times the rate",
        "try 2 of 3 begins, with 0.09 times the rate",
        "try 3 of 3 begins, with 0.027 times the rate",
        "the run goes on without freezing",
    ]
    assert watching.given_up
    assert not watching.watches(34, T)


def test_a_retry_is_judged_by_its_own_rounds() -> None:
    watching = guard()
    assert failed(watching, signals(0.9), signals(0.1), signals(1.0)) == [False, False, True]
    watching.go_back(23, T)
    assert failed(watching, signals(0.9, 1.4), signals(0.85, 3.0)) == [False, False]
    watching.go_back(25, T)
    assert failed(watching, signals(0.9, 1.6)) == [True]


def test_a_restored_guard_judges_the_same() -> None:
    watching, restored = guard(), Guard(40, enabled=True)
    failed(watching, signals(0.5), signals(0.2))
    watching.go_back(22, T)
    failed(watching, signals(0.5), signals(0.2))
    restored.restore(watching.state())
    assert restored == watching
    assert failed(restored, signals(0.6)) == [True]
