from __future__ import annotations

import math

import pytest

from fixbn_flwr.method.reported_metrics import median_loss, training_loss


@pytest.mark.parametrize(
    ("losses", "median"),
    [
        ([3.0, 1.0, 2.0], 2.0),
        ([4.0, 1.0, 2.0, 3.0], 2.5),
        ([1.0, math.nan, 2.0, 1.5], 1.5),
        ([1.0, math.inf], 1.0),
        ([1.0, math.nan, 3.0, -math.inf], 2.0),
        ([1.0, math.nan, math.nan], math.nan),
        ([math.inf], math.nan),
    ],
)
def test_the_median_loss_is_of_the_clients_that_have_one_unless_most_have_none(
    losses: list[float], median: float
) -> None:
    assert median_loss(losses) == pytest.approx(median, nan_ok=True)


def test_there_is_no_median_loss_if_no_client_reported_one() -> None:
    assert median_loss([]) is None


@pytest.mark.parametrize(
    ("metrics", "loss"),
    [
        ({"num-examples": 8, "train-loss": 0.5}, 0.5),
        ({"loss": 1, "train_loss": 2.0}, 2.0),
        ({"eval_loss": 1.0, "TrainLoss": 3}, 3.0),
        ({"accuracy": 0.5, "loss": 0.25}, 0.25),
        ({"val_loss": 1.0, "loss": 0.25}, 0.25),
        ({"Test-Loss": 1.0, "eval.loss": 1.0, "interval_loss": 0.25}, 0.25),
        ({"validation_loss": 1.0}, None),
        ({"valLoss": 9.0, "lossOfTest": 9.0, "Loss": 0.25}, 0.25),
        ({"loss": [1.0, 2.0], "accuracy": 0.5}, None),
        ({}, None),
    ],
)
def test_the_training_loss_is_found_by_its_name(
    metrics: dict[str, object], loss: float | None
) -> None:
    assert training_loss(metrics) == loss
