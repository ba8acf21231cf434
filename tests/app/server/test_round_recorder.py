"""When a run counts as lost after T*."""

from __future__ import annotations

import math

import pytest

from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.app.server.round_recorder import _has_diverged
from fixbn_flwr.method.schedule import Phase


def after_test(loss: float | None, accuracy: float | None) -> RoundMetrics:
    return RoundMetrics(
        round=1, phase=Phase.CALIBRATION, learning_rate=0.1, train_loss=1.0, test_loss=loss,
        test_accuracy=accuracy, bytes_sent=1, bytes_received=1, seconds=1.0, clients=2, dropped=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "accuracy", "lost"),
    [
        (1.0, 0.60, False),
        (4.9, 0.13, False),  # it has dipped, and may come back
        (5.1, 0.60, True),
        (math.inf, 0.60, True),
        (math.nan, 0.60, True),
        (2.3, 0.12, True),  # guesses, as large as its loss at T* was
        (None, None, False),  # was not tested
    ],
)
def test_a_run_is_lost_by_its_loss_or_when_it_guesses(
    loss: float | None, accuracy: float | None, lost: bool
) -> None:
    assert _has_diverged(after_test(loss, accuracy), after_test(1.0, 0.60), chance=0.1) is lost


def test_a_run_that_knew_nothing_at_t_star_has_not_lost_it() -> None:
    assert not _has_diverged(after_test(2.3, 0.10), after_test(2.3, 0.20), chance=0.1)
