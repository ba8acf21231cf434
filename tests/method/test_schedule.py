from __future__ import annotations

import pytest

from fixbn_flwr import Phase
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.schedule import freeze_round, phase_of


@pytest.mark.parametrize(
    ("freeze_after", "num_rounds", "expected"),
    [
        (0, 10, 0),
        (1, 10, 1),
        (50, 100, 50),
        (12, 10, 12),
        (0.5, 100, 50),
        (0.25, 10, 3),  # a half is rounded up
        (0.5, 5, 3),
        (0.01, 10, 1),  # at least one round
        (1.0, 10, 10),
        (1.0, 1, 1),
    ],
)
def test_freeze_round_accepts_integers_and_fractions(
    freeze_after: int | float, num_rounds: int, expected: int
) -> None:
    assert freeze_round(freeze_after, num_rounds) == expected


def test_the_integer_one_is_one_round_and_the_float_one_is_all_rounds() -> None:
    assert freeze_round(1, 7) == 1
    assert freeze_round(1.0, 7) == 7


@pytest.mark.parametrize("wrong", [-1, 0.0, -0.5, 1.5, float("nan"), True, "half", None])
def test_the_error_of_an_invalid_value_names_it(wrong: object) -> None:
    with pytest.raises(ConfigError, match=f"freeze_after={wrong!r}"):
        freeze_round(wrong, 10)  # type: ignore[arg-type]


def test_calibration_starts_after_the_last_round_of_exploration() -> None:
    phases = [phase_of(server_round, 2) for server_round in (1, 2, 3, 4)]
    assert phases == [Phase.EXPLORATION] * 2 + [Phase.CALIBRATION] * 2
    assert phase_of(1, 0) is Phase.CALIBRATION


def test_a_phase_is_sent_as_its_value() -> None:
    assert [str(phase) for phase in Phase] == ["exploration", "calibration"]
