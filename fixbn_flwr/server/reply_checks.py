"""Check a client's reply to a training message before anything is averaged.

One bad reply must neither spoil the model nor end the run. So each reply is checked on its own
against the arrays that were sent, and the server drops and names those that fail.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from flwr.common import Array as FlowerArray
from flwr.common import ArrayRecord, ConfigRecord, RecordDict

from fixbn_flwr.array_records import record_with, view_of
from fixbn_flwr.errors import ReplyError
from fixbn_flwr.flower_compat import make_array
from fixbn_flwr.method.averaging import Array, Arrays
from fixbn_flwr.method.round_config import GRADIENTS, MOMENTUM
from fixbn_flwr.method.wrapper_prefixes import under_sent_names
from fixbn_flwr.server.model_names import check_names
from fixbn_flwr.server.reply_collection import CheckedReply
from fixbn_flwr.server.reply_limits import check_records, check_sizes, extra_bytes
from fixbn_flwr.server.update_checks import check_update, in_sent_types


def check_reply(
    content: RecordDict,
    sent: Arrays,
    *,
    arrays_key: str = "arrays",
    weighted_by: str,
    with_momentum: bool,
    max_extra_bytes: int | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> CheckedReply[RecordDict]:
    """Check the content of a Message API reply.

    Args:
        content: What the client returned.
        sent: The arrays of the message it answers. Their names and shapes must come back.
        arrays_key: The key of the model's record in messages. Other records may hold the model too.
        weighted_by: The metric that is the client's weight, such as "num-examples".
        with_momentum: Whether momentum buffers must come beside the arrays.
        max_extra_bytes: How many bytes may come besides; see ``reply_limits.extra_bytes``.
        note: Logs a line about the client.

    Returns:
        The content without momentum buffers, its model under the names and in the types that were
        sent; and what FixBN averages.

    Raises:
        ReplyError: If the reply must not be averaged. The message says which array and why.
    """
    key, record = _model_record(content, sent, arrays_key)
    buffers = content.array_records.get(MOMENTUM, ArrayRecord()) if with_momentum else None
    check_records(content, key, extra_bytes(sent, max_extra_bytes))
    check_sizes({name: len(array.data) for name, array in record.items()}, sent)
    try:
        views = {name: view_of(array) for name, array in record.items()}
        momentum = None if buffers is None else _momentum_of(buffers, sent, note)
    except ValueError as error:
        raise ReplyError(
            f"its arrays cannot be read ({error}): reply with ArrayRecord(model.state_dict())."
        ) from error
    arrays = in_sent_types(views, sent, note)
    metrics = {k: v for record in content.metric_records.values() for k, v in record.items()}
    gradients = content.config_records.get(GRADIENTS, ConfigRecord())
    weight = metrics.get(weighted_by)
    update = check_update(arrays, momentum, weight, weighted_by, sent, metrics, gradients)
    # Type and shape from the server: nobody has checked what the client says of them.
    model = record_with(
        {
            name: make_array(str(own.dtype), own.shape, record[name].data)
            if views[name].dtype == own.dtype
            else FlowerArray(arrays[name])
            for name, own in sent.items()
        }
    )
    others = {k: v for k, v in content.items() if k not in (key, MOMENTUM, GRADIENTS)}
    checked = RecordDict({key: model, **others})
    return CheckedReply(checked, update, form_of(checked, update.momentum), key)


def _model_record(content: RecordDict, sent: Arrays, arrays_key: str) -> tuple[str, ArrayRecord]:
    """Return the key of the record that holds the model, and its arrays under the sent names.

    Raises:
        ReplyError: If no record does, or there is no MetricRecord.
    """
    records = {str(k): record for k, record in content.array_records.items() if k != MOMENTUM}
    if not records or not content.metric_records:
        raise ReplyError(
            f"it holds {len(records)} ArrayRecords and {len(content.metric_records)} MetricRecords "
            'instead of one each: reply with RecordDict({"arrays": ..., "metrics": ...}).'
        )
    for key in sorted(records, key=lambda key: key != arrays_key):
        record = records[key]
        named = under_sent_names(record, sent)
        if named is not None and named.keys() == sent.keys():
            return key, record_with(named)
    largest = max(records.values(), key=len)
    check_names(under_sent_names(largest, sent) or largest, sent)
    raise AssertionError("unreachable: check_names raises for other names")


def form_of(content: RecordDict, momentum: Mapping[str, Array]) -> Hashable:
    """Return what must be equal in replies that are averaged together.

    These are the names of records, metrics and buffers, and the lengths of metrics that are lists:
    Flower cannot add a number to a list, nor lists of different lengths.
    """
    metrics = [
        (
            key,
            frozenset(
                (name, len(value) if isinstance(value, list) else None)
                for name, value in record.items()
            ),
        )
        for key, record in content.metric_records.items()
    ]
    return (*content.array_records, *metrics, frozenset(momentum))


def _momentum_of(
    buffers: ArrayRecord, sent: Arrays, note: Callable[[str], None]
) -> dict[str, Array]:
    """Return momentum buffers under the sent names, none of them larger than its parameter.

    Raises:
        ReplyError: If one is larger.
        ValueError: If a buffer's bytes are not a numpy array.
    """
    named = under_sent_names(buffers, sent) or dict(buffers)
    check_sizes({n: len(array.data) for n, array in named.items() if n in sent}, sent)
    return in_sent_types({name: view_of(array) for name, array in named.items()}, sent, note)
