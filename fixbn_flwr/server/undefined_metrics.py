"""Metrics that are undefined at some clients, such as an AUC where the data has one class.

Flower averages a metric over all replies, and one NaN makes the average NaN. Here an undefined
value is replaced by the average of the other clients', so that the average is over those that have
the metric. A metric that no client has stays as it is: a user's own aggregation may need its name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fixbn_flwr.log import logger

Metrics = dict[str, Any]


def define_metrics(
    server_round: int, replies: Sequence[Metrics], weights: Sequence[float]
) -> tuple[list[Metrics], int]:
    """Return metrics in which every number is finite, but for those that no client has.

    Examples:
        >>> define_metrics(1, [{"auc": math.nan, "n": 1.0}, {"auc": 0.5, "n": 3.0}], [1.0, 3.0])
        ([{'auc': 0.5, 'n': 1.0}, {'auc': 0.5, 'n': 3.0}], 1)

    Args:
        server_round: The round, for the log.
        replies: Each client's metrics, with the same names.
        weights: Each client's weight in the average.

    Returns:
        The metrics, and how many values were undefined.
    """
    defined = [dict(metrics) for metrics in replies]
    count = 0
    for name in list(replies[0]) if replies else []:
        missing = [place for place, metrics in enumerate(defined) if _is_undefined(metrics[name])]
        if not missing:
            continue
        count += len(missing)
        others = [place for place in range(len(defined)) if place not in missing]
        logger.warning(
            "round %s: metric %r is undefined at %s of %s clients%s",
            server_round, name, len(missing), len(defined),
            ", averaged over the others" if others else "",
        )  # fmt: skip
        if not others:
            continue
        average = np.average(
            [defined[place][name] for place in others],
            axis=0,
            weights=[weights[place] for place in others],
        )
        for place in missing:
            defined[place][name] = average.tolist()
    return defined, count


def _is_undefined(value: object) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return any(isinstance(number, float) and not math.isfinite(number) for number in numbers)
