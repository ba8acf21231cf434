from __future__ import annotations

import math

import pytest

from simulation.reporting.intervals import interval, paired


def test_the_interval_is_students() -> None:
    found = interval([70.0, 72.0, 74.0])
    # 4.303 is Student's t for two degrees of freedom; the standard deviation is 2.
    assert (found.mean, found.number) == (72, 3)
    assert found.half == pytest.approx(4.3027 * 2 / math.sqrt(3), abs=1e-3)


@pytest.mark.parametrize(
    ("values", "word", "text"),
    [
        ([8.0, 9.0, 10.0], "ahead", "+9.0 ± 2.5 (3), ahead"),
        ([-8.0, -9.0, -10.0], "behind", "-9.0 ± 2.5 (3), behind"),
        ([-1.0, 1.0, 3.0], "level", "+1.0 ± 5.0 (3), level"),
        ([5.0], "one seed", "+5.0, one seed"),
        ([], "", "-"),
    ],
)
def test_a_difference_is_a_word_only_where_its_interval_says_so(
    values: list[float], word: str, text: str
) -> None:
    found = interval(values)
    assert (found.word, str(found)) == (word, text)


def test_a_difference_is_paired_by_seed() -> None:
    # The seeds differ by ten points, the methods by one with every seed.
    found = paired({0: 51.0, 1: 61.5, 2: 70.5, 7: 0.0}, {0: 50.0, 1: 60.5, 2: 69.5, 8: 0.0})
    assert (found.mean, found.half, found.number) == (1.0, 0.0, 3)
    assert found.word == "ahead"
