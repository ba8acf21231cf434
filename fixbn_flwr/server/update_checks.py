"""Check the arrays of an update against those that were sent, in either generation of Flower."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fixbn_flwr.errors import NotFiniteError, ReplyError
from fixbn_flwr.method.averaging import Array, Arrays, Kind, is_spoilt, kind_of, of_kind
from fixbn_flwr.method.reported_metrics import reported_gradients, training_loss
from fixbn_flwr.method.round_config import MOMENTUM
from fixbn_flwr.method.update import Update
from fixbn_flwr.server.model_names import check_names
from fixbn_flwr.server.reply_limits import check_weight


def in_sent_types(arrays: Arrays, sent: Arrays, note: Callable[[str], None]) -> dict[str, Array]:
    """Return arrays with every floating type converted to the one that was sent.

    A value that overflows becomes infinite, and is refused as such later.

    Args:
        arrays: A client's arrays, by name.
        sent: The arrays that were sent.
        note: Logs a line about the client.
    """
    converted = dict(arrays)
    for name, array in arrays.items():
        own = sent.get(name)
        if own is None or array.dtype == own.dtype or {array.dtype.kind, own.dtype.kind} != {"f"}:
            continue
        with np.errstate(over="ignore"):
            converted[name] = array.astype(own.dtype)
        note(f"returned {array.dtype} for {own.dtype}: converted")
    return converted


def check_update(
    arrays: Arrays,
    momentum: Arrays | None,
    weight: object,
    weighted_by: str,
    sent: Arrays,
    metrics: Mapping[str, object],
    gradients: Mapping[str, object],
) -> Update:
    """Check what a client returned against what it was sent; return what FixBN averages of it.

    Args:
        arrays: The whole model, by name.
        momentum: Momentum buffers by parameter name, or None when none are expected.
        weight: The client's weight in the average.
        weighted_by: The weight's name, for the message.
        sent: The arrays that were sent. Their names, shapes and types must come back.
        metrics: The client's metrics, which may have its training loss.
        gradients: What may have its comparison of gradients.

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
        parameters=of_kind(arrays, Kind.PARAMETER),
        train_loss=training_loss(metrics),
        gradients=reported_gradients(gradients),
    )


def _check_arrays(arrays: Arrays, sent: Arrays) -> None:
    check_names(arrays, sent)
    for name, array in arrays.items():
        if array.shape != sent[name].shape:
            raise ReplyError(
                f"array {name!r} has shape {array.shape} and was sent with {sent[name].shape}: "
                "client and server must build the same model."
            )
        if array.dtype != sent[name].dtype:
            raise ReplyError(
                f"array {name!r} has type {array.dtype} and was sent as {sent[name].dtype}: return "
                "the types that were sent. Only floating types are converted."
            )
        _check_finite(name, array, sent[name])
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
        _check_finite(f"{name} (momentum)", buffer, np.zeros(()))


def _check_finite(name: str, array: Array, before: Array) -> None:
    if is_spoilt(array, before):
        raise NotFiniteError(
            f"array {name!r} holds NaN or infinity: its training diverged. Use a smaller learning "
            "rate, in calibration a smaller learning_rate_factor."
        )
