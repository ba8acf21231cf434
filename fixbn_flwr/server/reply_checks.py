"""A client's reply to a training message: taken apart and checked before anything is averaged.

One bad reply must neither spoil the model nor end the run, so each is checked on its own against
the arrays that were sent, and the server drops and names those that fail. The checks know named
arrays only and serve both generations of Flower; :func:`read_reply` brings the Message API's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from fixbn_flwr.array_records import view_of
from fixbn_flwr.errors import ReplyError
from fixbn_flwr.flower_compat import SType
from fixbn_flwr.method.averaging import Array, Arrays, Kind, kind_of, of_kind
from fixbn_flwr.method.round_config import MOMENTUM
from fixbn_flwr.method.server_rules import Update
from fixbn_flwr.server.reply_limits import check_records, check_sizes, check_weight

NOT_FINITE = "holds NaN or infinity"
"""What every error says of an array that shows a training that diverged."""


def read_reply(
    reply: Message, sent: Arrays, *, weighted_by: str, with_momentum: bool
) -> tuple[Update, RecordDict]:
    """Take a reply apart: what FixBN averages, and the content as the wrapped strategy may see it.

    Args:
        reply: a reply that is not an error.
        sent: the arrays of the message it answers, whose names, shapes and types must come back.
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
    buffers = content.array_records.get(MOMENTUM, ArrayRecord()) if with_momentum else None
    check_records(content, sent)
    _check_names(record, sent)
    check_sizes({name: len(array.data) for name, array in record.items()}, sent)
    try:
        arrays = {name: view_of(array) for name, array in record.items()}
        momentum = None if buffers is None else _momentum_of(buffers, sent)
    except ValueError as error:
        raise ReplyError(
            f"its arrays cannot be read ({error}): reply with ArrayRecord(model.state_dict())."
        ) from error
    (metrics,) = content.metric_records.values()
    update = checked_update(arrays, momentum, metrics.get(weighted_by), weighted_by, sent)
    parameters = ArrayRecord(
        {  # What a client says of type and shape beside the bytes, nobody has checked.
            name: FlowerArray(str(own.dtype), own.shape, SType.NUMPY, record[name].data)
            for name, own in of_kind(sent, Kind.PARAMETER).items()
        }
    )
    return update, RecordDict(
        {str(key): parameters, **content.metric_records, **content.config_records}
    )


def _momentum_of(buffers: ArrayRecord, sent: Arrays) -> dict[str, Array]:
    """Return views of momentum buffers, none of them larger than its parameter.

    Raises:
        ReplyError: one is larger.
        ValueError: a buffer's bytes are not those of a numpy array.
    """
    sizes = {name: len(array.data) for name, array in buffers.items() if name in sent}
    check_sizes(sizes, sent)
    return {name: view_of(array) for name, array in buffers.items()}


def checked_update(
    arrays: Arrays, momentum: Arrays | None, weight: object, weighted_by: str, sent: Arrays
) -> Update:
    """Check what a client returned against what it was sent, and return what FixBN averages of it.

    Args:
        arrays: the whole model, by name.
        momentum: momentum buffers by parameter name; None when none are expected.
        weight: what the client counts with.
        weighted_by: the weight's name, for the message.
        sent: the arrays that were sent, whose names, shapes and types must come back.

    Raises:
        ReplyError: the reply must not be averaged; the message says which array and why.
    """
    _check_arrays(arrays, sent)
    if momentum is not None:
        _check_momentum(momentum, of_kind(sent, Kind.PARAMETER))
    # In the order in which they were sent: safetensors loads names in any order, and strategies
    # that defend (Krum) put arrays together by place.
    arrays = {name: arrays[name] for name in sent}
    buffers = {name: momentum[name] for name in sent if momentum and name in momentum}
    return Update(
        arrays=of_kind(arrays, Kind.STATISTIC, Kind.COUNTER),
        momentum=buffers,
        weight=check_weight(weight, weighted_by),
    )


UNLIKE_THE_OTHERS = (
    "the names of its records, metrics or momentum buffers are not those of most replies, so they "
    "cannot be averaged together: let all clients return the same."
)


def unlike_the_others(forms: Sequence[Hashable]) -> list[int]:
    """Return the places of the forms that are not the commonest one; Flower would stop the run."""
    common = Counter(forms).most_common(1)
    return [place for place, form in enumerate(forms) if form != common[0][0]]


def form_of(content: RecordDict, momentum: Mapping[str, Array]) -> Hashable:
    """Return what must be alike in replies to be averaged.

    The names of records, metrics and buffers, and of metrics that are lists their length: Flower
    cannot add a number to a list, nor lists of different lengths.
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


def _check_names(arrays: Mapping[str, object], sent: Arrays) -> None:
    if arrays.keys() != sent.keys():
        missing, unknown = sorted(sent.keys() - arrays.keys()), sorted(arrays.keys() - sent.keys())
        raise ReplyError(
            f"its arrays are not those of the global model (missing {missing[:3]}, unknown "
            f"{unknown[:3]}): return all of model.state_dict(), statistics and counters too."
        )


def _check_arrays(arrays: Arrays, sent: Arrays) -> None:
    _check_names(arrays, sent)
    for name, array in arrays.items():
        if array.shape != sent[name].shape or array.dtype != sent[name].dtype:
            raise ReplyError(
                f"array {name!r} is {array.dtype} {array.shape} and was sent as "
                f"{sent[name].dtype} {sent[name].shape}: client and server must build one model."
            )
        _check_finite(name, array, np.isfinite(sent[name]))
        if name.endswith("running_var") and kind_of(name) is Kind.STATISTIC and np.any(array < 0):
            raise ReplyError(f"array {name!r} is a variance and holds {array.min()}, below zero.")


def _check_momentum(momentum: Arrays, parameters: Arrays) -> None:
    if not momentum:
        raise ReplyError(
            f"it holds no {MOMENTUM!r} though the momentum mode is global: add **local.records "
            "to the reply's content (NumPyClient: **local.metrics to the metrics)."
        )
    for name, buffer in momentum.items():
        own = parameters.get(name)
        if own is None or (buffer.shape, buffer.dtype) != (own.shape, own.dtype):
            raise ReplyError(
                f"its momentum buffer {name!r}, {buffer.dtype} {buffer.shape}, fits no parameter "
                "of the model: give local_training the model whose arrays are returned."
            )
        _check_finite(f"{name} (momentum)", buffer, np.True_)


def _check_finite(name: str, array: Array, was_finite: NDArray[np.bool_] | np.bool_) -> None:
    # A model may hold infinity by design, as the mask of an attention layer does.
    if np.any(~np.isfinite(array) & was_finite):
        raise ReplyError(
            f"array {name!r} {NOT_FINITE}: its training diverged. A smaller learning "
            "rate helps, in calibration a smaller learning_rate_factor."
        )
