"""The usable replies of a round, with metrics that can be averaged."""

from __future__ import annotations

from dataclasses import replace

from flwr.common import Message, MetricRecord, RecordDict

from fixbn_flwr.server.reply_collection import Selection
from fixbn_flwr.server.undefined_metrics import define_metrics


def with_defined_metrics(
    server_round: int, selection: Selection[int, Message, RecordDict]
) -> tuple[Selection[int, Message, RecordDict], int]:
    """Return a selection with ``define_metrics``, and how many values were undefined."""
    checked = list(selection.checked.values())
    weights = [reply.update.weight for reply in checked]
    contents, undefined = [RecordDict({**reply.content}) for reply in checked], 0
    for key in list(contents[0].metric_records) if contents else []:
        records = [dict(content.metric_records[key]) for content in contents]
        defined, count = define_metrics(server_round, records, weights)
        undefined += count
        if count:
            for content, metrics in zip(contents, defined, strict=True):
                content[key] = MetricRecord(metrics)
    if not undefined:
        return selection, 0
    usable = {
        client: (reply, replace(one, content=content))
        for (client, (reply, one)), content in zip(selection.usable.items(), contents, strict=True)
    }
    return replace(selection, usable=usable), undefined
