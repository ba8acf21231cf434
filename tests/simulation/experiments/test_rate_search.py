from __future__ import annotations

import pytest

from simulation.experiments.rate_search import best_rate, next_rates

FIRST = [0.05, 0.1]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({}, [0.05, 0.1]),
        ({0.1: 0.5}, [0.05]),
        ({0.05: 0.5, 0.1: 0.4}, [0.025]),
        ({0.05: 0.4, 0.1: 0.5}, [0.2]),
        ({0.025: 0.4, 0.05: 0.5, 0.1: 0.4}, []),
        ({0.05: 0.4, 0.1: 0.5, 0.2: -1.0}, []),
        ({0.05: 0.5, 0.1: 0.5}, []),  # a plateau
        ({0.05: -1.0, 0.1: -1.0}, [0.025]),  # all diverged
        ({0.05: 0.1, 0.1: 0.2, 0.2: 0.3}, [0.4]),
    ],
)
def test_the_grid_grows_until_the_best_lies_inside(
    scores: dict[float, float], expected: list[float]
) -> None:
    assert next_rates(scores, FIRST) == expected


@pytest.mark.parametrize("better", [1, -1])
def test_a_score_that_always_grows_ends_at_a_bound(better: int) -> None:
    scores: dict[float, float] = {}
    while rates := next_rates(scores, FIRST):
        scores |= {rate: better * rate for rate in rates}
    assert 1e-5 <= min(scores) <= max(scores) <= 100
    assert len(scores) > 8


def test_the_smallest_of_equally_good_rates_is_the_best() -> None:
    assert best_rate({0.1: 0.5, 0.05: 0.5, 0.2: 0.4}) == 0.05
