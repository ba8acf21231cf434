"""A client's reply to a training message: taken apart and checked before anything is averaged.

One bad reply must neither spoil the model nor end the run, so each is checked on its own against
the arrays that were sent, and the server drops and names those that fail.
"""

from __future__ import annotations

import math

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from fixbn_flwr.averaging import Array, Kind, kind_of
from fixbn_flwr.errors import ReplyError
from fixbn_flwr.server_state import Update
from fixbn_flwr.wire import MOMENTUM


def arrays_of(record: ArrayRecord) -> dict[str, Array]:
    """Return a record's arrays as numpy arrays, by name."""
    return {name: array.numpy() for name, array in record.items()}


def read_reply(
    reply: Message, sent: ArrayRecord, *, weighted_by: str, with_momentum: bool
) -> tuple[Update, RecordDict]:
    """Take a reply apart: what FixBN averages, and the content as the wrapped strategy may see it.

    Args:
        reply: a reply that is not an error.
        sent: the arrays of the message it answers: the reply must match their names, shapes, types.
        weighted_by: the metric that is the client's weight, such as "num-examples".
        with_momentum: whether momentum buffers must stand beside the arrays.

    Raises:
        ReplyError: the reply must not be averaged; the message says which array and why.
    """
    content = reply.content
    records = {key: value for key, value in content.array_records.items() if key != MOMENTUM}
    if len(records) != 1 or len(content.metric_records) != 1:
        raise ReplyError(
            f"it holds {len(records)} ArrayRecords and {len(content.metric_records)} MetricRecords "
            'instead of one each: reply with RecordDict({"arrays": ..., "metrics": ...}).'
        )
    ((key, record),) = records.items()
    arrays = arrays_of(record)
    _check_arrays(arrays, arrays_of(sent))
    momentum = arrays_of(content.array_records.get(MOMENTUM, ArrayRecord()))
    if with_momentum:
        _check_momentum(momentum, arrays)
    update = Update(
        arrays={name: a for name, a in arrays.items() if kind_of(name) is not Kind.PARAMETER},
        momentum=momentum,
        weight=_weight(content, weighted_by),
    )
    parameters = only(record, Kind.PARAMETER)
    return update, RecordDict(
        {str(key): parameters, **content.metric_records, **content.config_records}
    )


def only(record: ArrayRecord, kind: Kind) -> ArrayRecord:
    """Return the arrays of one kind, in their order."""
    return ArrayRecord({name: a for name, a in record.items() if kind_of(name) is kind})


def _check_arrays(arrays: dict[str, Array], sent: dict[str, Array]) -> None:
    if arrays.keys() != sent.keys():
        missing, unknown = sorted(sent.keys() - arrays.keys()), sorted(arrays.keys() - sent.keys())
        raise ReplyError(
            f"its arrays are not those of the global model (missing {missing[:3]}, unknown "
            f"{unknown[:3]}): return all of model.state_dict(), statistics and counters too."
        )
    for name, array in arrays.items():
        if array.shape != sent[name].shape or array.dtype != sent[name].dtype:
            raise ReplyError(
                f"array {name!r} is {array.dtype} {array.shape} and was sent as "
                f"{sent[name].dtype} {sent[name].shape}: client and server must build one model."
            )
        _check_finite(name, array)


def _check_momentum(momentum: dict[str, Array], arrays: dict[str, Array]) -> None:
    if not momentum:
        raise ReplyError(
            f"it holds no {MOMENTUM!r} though the momentum mode is global: add **local.records "
            "to the reply's content (NumPyClient: **local.metrics to the metrics)."
        )
    for name, buffer in momentum.items():
        if name not in arrays or buffer.shape != arrays[name].shape:
            raise ReplyError(f"its momentum buffer {name!r} fits no parameter of the model.")
        _check_finite(f"{name} (momentum)", buffer)


def _check_finite(name: str, array: Array) -> None:
    if not np.all(np.isfinite(array)):
        raise ReplyError(
            f"array {name!r} holds NaN or infinity: its training diverged. A smaller learning "
            "rate helps, in calibration a smaller learning_rate_factor."
        )


def _weight(content: RecordDict, weighted_by: str) -> float:
    (metrics,) = content.metric_records.values()
    weight = metrics.get(weighted_by)
    if not isinstance(weight, int | float) or not math.isfinite(weight) or weight <= 0:
        raise ReplyError(
            f"its metric {weighted_by!r} is {weight!r} and must be a number above zero: "
            "it is the weight of the client in the average."
        )
    return float(weight)
