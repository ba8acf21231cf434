"""Metrics that are NaN at some clients, or at all."""

from __future__ import annotations

import math
from typing import Any

import pytest
from flwr.app import RecordDict
from torch import nn

from fixbn_flwr import FixBN
from tests.support.small_federation import CLIENTS, fedavg, federation, same


def metric(name: str, values: list[float]) -> Any:
    def on_reply(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
        content.metric_records["metrics"][name] = values[partition]

    return on_reply


def test_an_undefined_metric_is_averaged_over_the_clients_that_have_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All clients have equally many examples, so the mean of 0.1 and 0.2 is 0.15."""
    values = [0.1, math.nan, 0.2, math.nan]
    on_reply = metric("auc", values)
    result, _ = federation(FixBN(fedavg(), freeze_after=1), on_reply=on_reply, rounds=1)
    metrics = result.train_metrics_clientapp[1]
    plain, _ = federation(FixBN(fedavg(), freeze_after=1), rounds=1)
    assert metrics["auc"] == pytest.approx(0.15)
    assert metrics["fixbn-clients"] == CLIENTS
    assert metrics["fixbn-undefined"] == 2
    assert "metric 'auc' is undefined at 2 of 4 clients" in caplog.text
    assert same(
        {n: a.numpy() for n, a in result.arrays.items()},
        {n: a.numpy() for n, a in plain.arrays.items()},
    )


def test_a_metric_that_no_client_defines_stays_nan_as_in_flower() -> None:
    on_reply = metric("auc", [math.nan] * CLIENTS)
    for strategy in (fedavg(), FixBN(fedavg(), freeze_after=1)):
        result, _ = federation(strategy, on_reply=on_reply, rounds=1)
        assert math.isnan(float(str(result.train_metrics_clientapp[1]["auc"])))
    assert result.train_metrics_clientapp[1]["fixbn-undefined"] == CLIENTS
