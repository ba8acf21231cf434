"""The detection of divergence after T*."""

from __future__ import annotations

import math

import pytest

from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.app.server.divergence import _has_diverged
from fixbn_flwr.method.schedule import Phase


def evaluated(loss: float | None, accuracy: float | None) -> RoundMetrics:
    return RoundMetrics(
        round=1, phase=Phase.CALIBRATION, learning_rate=0.1, train_loss=1.0, test_loss=loss,
        test_accuracy=accuracy, bytes_sent=1, bytes_received=1, seconds=1.0, clients=2, dropped=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "accuracy", "diverged"),
    [
        (1.0, 0.60, False),
        (4.9, 0.13, False),  # a temporary loss of accuracy
        (5.1, 0.60, True),
        (math.inf, 0.60, True),
        (math.nan, 0.60, True),
        (2.3, 0.12, True),  # accuracy of random guesses, although the loss is low
        (None, None, False),  # not evaluated
    ],
)
def test_a_run_has_diverged_if_its_loss_or_its_accuracy_is_bad(
    loss: float | None, accuracy: float | None, diverged: bool
) -> None:
    assert _has_diverged(evaluated(loss, accuracy), evaluated(1.0, 0.60), chance=0.1) is diverged


def test_a_run_without_accuracy_at_t_star_does_not_count_as_diverged() -> None:
    assert not _has_diverged(evaluated(2.3, 0.10), evaluated(2.3, 0.20), chance=0.1)
