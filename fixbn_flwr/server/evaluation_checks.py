"""Check clients' evaluations of the global model before they are averaged.

Evaluations do not change the model. But one bad evaluation ends the run in Flower's own averages: a
missing weight, inconsistent names, a number added to a list.
"""

from __future__ import annotations

from flwr.app import RecordDict

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.method.averaging import Arrays
from fixbn_flwr.method.update import Update
from fixbn_flwr.server.reply_checks import form_of
from fixbn_flwr.server.reply_collection import CheckedReply
from fixbn_flwr.server.reply_limits import check_records, check_weight, extra_bytes


def check_evaluation(
    content: RecordDict, sent: Arrays, *, weighted_by: str, max_extra_bytes: int | None = None
) -> CheckedReply[RecordDict]:
    """Check the content of a Message API reply to an evaluation message.

    Args:
        content: What the client returned.
        sent: The model that it evaluated.
        weighted_by: The metric that is the client's weight.
        max_extra_bytes: How many bytes the reply may hold; see ``reply_limits.extra_bytes``.

    Raises:
        ReplyError: If it cannot be averaged with others. The message says why.
    """
    if len(content.metric_records) != 1:
        raise ReplyError(
            f"it holds {len(content.metric_records)} MetricRecords instead of one: reply with "
            'RecordDict({"metrics": ...}).'
        )
    check_records(content, "", extra_bytes(sent, max_extra_bytes))
    (metrics,) = content.metric_records.values()
    weight = check_weight(metrics.get(weighted_by), weighted_by)
    return CheckedReply(content, Update({}, {}, weight), form_of(content, {}))
