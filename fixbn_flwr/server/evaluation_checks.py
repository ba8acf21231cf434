"""Clients' evaluations of the global model, checked before they are averaged.

They do not touch the model, but one bad one among them ends the run in Flower's own averages (a
weight that is missing, names unlike the others', a number to be added to a list), or makes the
metric of all clients NaN. So each is checked on its own, as the replies to a training are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from flwr.app import RecordDict
from flwr.common import EvaluateRes

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.method.averaging import Arrays
from fixbn_flwr.server.reply_limits import check_metrics, check_records, check_weight, shown


def check_evaluation(content: RecordDict, sent: Arrays, weighted_by: str) -> None:
    """Check a reply of the Message API.

    Args:
        content: what a client returned; it is no error.
        sent: the model that it evaluated.
        weighted_by: the metric that is the client's weight.

    Raises:
        ReplyError: it cannot be averaged with others; the message says why.
    """
    if len(content.metric_records) != 1:
        raise ReplyError(
            f"it holds {len(content.metric_records)} MetricRecords instead of one: reply with "
            'RecordDict({"metrics": ...}).'
        )
    check_records(content, sent)
    (metrics,) = content.metric_records.values()
    check_weight(metrics.get(weighted_by), weighted_by)
    _check_finite(metrics)


def check_older_evaluation(result: EvaluateRes, sent: Arrays) -> None:
    """Check a reply of the older generation, as ``check_evaluation`` does.

    Raises:
        ReplyError: it cannot be averaged with others; the message says why.
    """
    metrics = {"loss": result.loss, **result.metrics}
    check_metrics(metrics, sent)
    check_weight(result.num_examples, "num_examples")
    if not isinstance(result.loss, int | float):
        raise ReplyError(f"its loss is {shown(result.loss)}: return a number from evaluate().")
    _check_finite({**metrics, "loss": result.loss})


def _check_finite(metrics: Mapping[str, object]) -> None:
    for name, value in metrics.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ReplyError(
                f"its metric {name!r} is {shown(value)}, which would make the average of all "
                "clients the same: return finite numbers, and leave out what was not measured in "
                "all clients alike."
            )
