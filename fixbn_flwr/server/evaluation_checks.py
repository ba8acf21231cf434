"""Check clients' evaluations of the global model before they are averaged.

Evaluations do not change the model. But one bad evaluation ends the run in Flower's own averages (a
missing weight, inconsistent names, a number added to a list), or makes everybody's metric NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from flwr.app import RecordDict

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.method.averaging import Arrays
from fixbn_flwr.method.server_rules import Update
from fixbn_flwr.server.reply_checks import form_of
from fixbn_flwr.server.reply_collection import CheckedReply
from fixbn_flwr.server.reply_limits import check_records, check_weight, shown


def check_evaluation(
    content: RecordDict, sent: Arrays, *, weighted_by: str
) -> CheckedReply[RecordDict]:
    """Check the content of a Message API reply to an evaluation message.

    Args:
        content: What the client returned.
        sent: The model that it evaluated.
        weighted_by: The metric that is the client's weight.

    Raises:
        ReplyError: If it cannot be averaged with others. The message says why.
    """
    if len(content.metric_records) != 1:
        raise ReplyError(
            f"it holds {len(content.metric_records)} MetricRecords instead of one: reply with "
            'RecordDict({"metrics": ...}).'
        )
    check_records(content, sent)
    (metrics,) = content.metric_records.values()
    weight = check_weight(metrics.get(weighted_by), weighted_by)
    check_finite_metrics(metrics)
    return CheckedReply(content, Update({}, {}, weight), form_of(content, {}))


def check_finite_metrics(metrics: Mapping[str, object]) -> None:
    """Refuse metrics, or lists of them, that are not finite.

    Raises:
        ReplyError: If one is NaN or infinity.
    """
    for name, value in metrics.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(math.isfinite(number) for number in numbers if isinstance(number, float)):
            raise ReplyError(
                f"its metric {name!r} is {shown(value)}, which would make the average of all "
                "clients not finite: return finite numbers, and let all clients leave out what "
                "was not measured."
            )
