"""Check a client's reply to a training message before anything is averaged.

One bad reply must neither spoil the model nor end the run. So each reply is checked on its own
against the arrays that were sent, and the server drops and names those that fail. The checks know
named arrays only and serve both generations of Flower; ``check_reply`` reads the Message API's.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from fixbn_flwr.array_records import view_of
from fixbn_flwr.errors import NotFiniteError, ReplyError
from fixbn_flwr.flower_compat import SType
from fixbn_flwr.method.averaging import Array, Arrays, Kind, kind_of, of_kind
from fixbn_flwr.method.round_config import MOMENTUM
from fixbn_flwr.method.server_rules import Update
from fixbn_flwr.server.reply_collection import CheckedReply
from fixbn_flwr.server.reply_limits import check_records, check_sizes, check_weight


def check_reply(
    content: RecordDict, sent: Arrays, *, weighted_by: str, with_momentum: bool
) -> CheckedReply[RecordDict]:
    """Check the content of a Message API reply.

    Args:
        content: What the client returned.
        sent: The arrays of the message it answers. Their names, shapes and types must come back.
        weighted_by: The metric that is the client's weight, such as "num-examples".
        with_momentum: Whether momentum buffers must come beside the arrays.

    Returns:
        The parameters, metrics and config records for the inner strategy, and the rest as the
        update.

    Raises:
        ReplyError: If the reply must not be averaged. The message says which array and why.
    """
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
    update = check_update(arrays, momentum, metrics.get(weighted_by), weighted_by, sent)
    parameters = ArrayRecord(
        {  # Type and shape from the server: nobody has checked what the client says of them.
            name: FlowerArray(str(own.dtype), own.shape, SType.NUMPY, record[name].data)
            for name, own in of_kind(sent, Kind.PARAMETER).items()
        }
    )
    for_strategy = RecordDict(
        {str(key): parameters, **content.metric_records, **content.config_records}
    )
    return CheckedReply(for_strategy, update, form_of(for_strategy, update.momentum))


def check_update(
    arrays: Arrays, momentum: Arrays | None, weight: object, weighted_by: str, sent: Arrays
) -> Update:
    """Check what a client returned against what it was sent; return what FixBN averages of it.

    Args:
        arrays: The whole model, by name.
        momentum: Momentum buffers by parameter name, or None when none are expected.
        weight: The client's weight in the average.
        weighted_by: The weight's name, for the message.
        sent: The arrays that were sent. Their names, shapes and types must come back.

    Raises:
        ReplyError: If the reply must not be averaged. The message says which array and why.
    """
    _check_arrays(arrays, sent)
    if momentum is not None:
        _check_momentum(momentum, of_kind(sent, Kind.PARAMETER))
    # In the order of the model: safetensors loads names in any order, and defending strategies
    # (Krum) match arrays by position.
    arrays = {name: arrays[name] for name in sent}
    buffers = {name: momentum[name] for name in sent if momentum and name in momentum}
    return Update(
        arrays=of_kind(arrays, Kind.STATISTIC, Kind.COUNTER),
        momentum=buffers,
        weight=check_weight(weight, weighted_by),
    )


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


def _momentum_of(buffers: ArrayRecord, sent: Arrays) -> dict[str, Array]:
    """Return views of momentum buffers, none of them larger than its parameter.

    Raises:
        ReplyError: If one is larger.
        ValueError: If a buffer's bytes are not a numpy array.
    """
    sizes = {name: len(array.data) for name, array in buffers.items() if name in sent}
    check_sizes(sizes, sent)
    return {name: view_of(array) for name, array in buffers.items()}


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
                f"{sent[name].dtype} {sent[name].shape}: client and server must build the same "
                "model."
            )
        _check_finite(name, array, np.isfinite(sent[name]))
        if name.endswith("running_var") and kind_of(name) is Kind.STATISTIC and np.any(array < 0):
            raise ReplyError(f"array {name!r} is a variance and holds {array.min()}, below zero.")


def _check_momentum(momentum: Arrays, parameters: Arrays) -> None:
    if not momentum:
        raise ReplyError(
            f"it holds no {MOMENTUM!r} although the momentum mode is global: add **local.records "
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
        raise NotFiniteError(
            f"array {name!r} holds NaN or infinity: its training diverged. Use a smaller learning "
            "rate, in calibration a smaller learning_rate_factor."
        )
