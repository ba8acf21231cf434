"""What the clients' validations say about a round's model."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import pstdev
from typing import Any

from flwr.app import MetricRecord


def validation_metrics(
    validated: MetricRecord | None, label_of: Callable[[int], str]
) -> dict[str, Any]:
    """Return the fields of ``RoundMetrics`` about validation; none in a round without it.

    Args:
        validated: What ``ReproducibleFedAvg.aggregate_evaluate`` returned.
        label_of: Returns a client's name in metrics, by Flower's id of its node.

    Examples:
        >>> record = MetricRecord(
        ...     {"loss": 0.5, "accuracy": 0.7, "accuracies": [0.6, 0.9], "nodes": [4, 5]}
        ... )
        >>> fields = validation_metrics(record, {4: "0", 5: "1"}.__getitem__)
        >>> fields["validation_worst"], round(fields["validation_spread"], 3)
        (0.6, 0.15)
        >>> fields["validation_by_client"]
        {'0': 0.6, '1': 0.9}
    """
    if validated is None:
        return {}
    averages: dict[str, Any] = dict(validated)
    by_client: dict[str, float] = {}
    for node, accuracy in zip(averages["nodes"], averages["accuracies"], strict=True):
        label = label_of(node)
        by_client[f"{label} ({node})" if label in by_client else label] = accuracy
    return {
        "validation_loss": averages["loss"] if math.isfinite(averages["loss"]) else None,
        "validation_accuracy": averages["accuracy"],
        "validation_worst": min(by_client.values()),
        "validation_spread": pstdev(by_client.values()),
        "validation_by_client": by_client,
    }
