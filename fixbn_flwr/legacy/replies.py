"""Check the older generation's replies, with the rules of ``fixbn_flwr.server.reply_checks``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import safetensors.numpy
from flwr.common import EvaluateRes, FitRes, Scalar, ndarrays_to_parameters

from fixbn_flwr.array_records import view_of_bytes
from fixbn_flwr.errors import ReplyError
from fixbn_flwr.flower_compat import ClientProxy
from fixbn_flwr.log import shortened
from fixbn_flwr.method.averaging import Array, Arrays, Kind, of_kind
from fixbn_flwr.method.round_config import GRADIENT_COSINE, GRADIENT_NORM_RATIO, MOMENTUM_BLOB
from fixbn_flwr.method.update import Update
from fixbn_flwr.server.dropped_replies import DroppedReply, DroppedReplyLog
from fixbn_flwr.server.reply_collection import CheckedReply, Selection, select
from fixbn_flwr.server.reply_limits import (
    check_blob,
    check_metrics,
    check_sizes,
    check_weight,
    extra_bytes,
    shown,
)
from fixbn_flwr.server.undefined_metrics import define_metrics
from fixbn_flwr.server.update_checks import check_update, in_sent_types

Result = TypeVar("Result", FitRes, EvaluateRes)


def check_fit(
    result: FitRes,
    sent: Arrays,
    *,
    with_momentum: bool,
    max_extra_bytes: int | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> CheckedReply[FitRes]:
    """Check what a client's ``fit`` returned.

    Args:
        result: The reply.
        sent: The arrays that the client was sent, by name and in order.
        with_momentum: Whether momentum buffers must be among the metrics.
        max_extra_bytes: How many bytes the metrics may take; see ``reply_limits.extra_bytes``.
        note: Logs a line about the client.

    Returns:
        The result in the types that were sent, its metrics without buffers; and what FixBN
        averages.

    Raises:
        ReplyError: If the reply must not be averaged. The message says which array and why.
    """
    tensors = result.parameters.tensors
    if len(tensors) != len(sent):
        raise ReplyError(
            f"it holds {len(tensors)} arrays and was sent {len(sent)}: return all of "
            "model.state_dict(), in its order, from fit(). A client that keeps batch normalization "
            "private (FedBN) contradicts FixBN, which averages the statistics: use one of the two."
        )
    check_sizes({name: len(data) for name, data in zip(sent, tensors, strict=True)}, sent)
    metrics = dict(result.metrics)
    blob = metrics.pop(MOMENTUM_BLOB, None)
    names = {GRADIENT_COSINE, GRADIENT_NORM_RATIO} & metrics.keys()
    gradients = {name: metrics.pop(name) for name in names}
    check_metrics(metrics, extra_bytes(sent, max_extra_bytes))
    try:
        views = {name: view_of_bytes(data) for name, data in zip(sent, tensors, strict=True)}
    except ValueError as error:
        raise ReplyError(
            f"its arrays cannot be read ({error}): return numpy arrays from fit()."
        ) from error
    momentum = _buffers(blob, of_kind(sent, Kind.PARAMETER)) if with_momentum else None
    arrays = in_sent_types(views, sent, note)
    if momentum is not None:
        momentum = in_sent_types(momentum, sent, note)
    update = check_update(
        arrays, momentum, result.num_examples, "num_examples", sent, metrics, gradients
    )
    parameters = ndarrays_to_parameters(list(arrays.values()))
    checked = FitRes(result.status, parameters, result.num_examples, metrics)
    return CheckedReply(checked, update, (form_of(metrics), frozenset(update.momentum)))


def check_evaluate(
    result: EvaluateRes, sent: Arrays, *, max_extra_bytes: int | None = None
) -> CheckedReply[EvaluateRes]:
    """Check what a client's ``evaluate`` returned.

    Raises:
        ReplyError: If it cannot be averaged with others. The message says why.
    """
    limit = extra_bytes(sent, max_extra_bytes)
    check_metrics({"loss": result.loss, **result.metrics}, limit)
    weight = check_weight(result.num_examples, "num_examples")
    if not isinstance(result.loss, int | float):
        raise ReplyError(f"its loss is {shown(result.loss)}: return a number from evaluate().")
    return CheckedReply(result, Update({}, {}, weight), form_of(result.metrics))


def form_of(metrics: Mapping[str, Scalar]) -> Hashable:
    """Return what must be equal in metrics that are averaged: names, and which are numbers."""
    return frozenset((name, isinstance(value, int | float)) for name, value in metrics.items())


def select_results(
    server_round: int,
    results: Iterable[tuple[ClientProxy, Result]],
    failures: Sequence[tuple[ClientProxy, Result] | BaseException],
    check: Callable[[str, Result], CheckedReply[Result]],
    log: DroppedReplyLog,
) -> tuple[
    Selection[str, Result, Result],
    list[tuple[ClientProxy, Result]],
    list[tuple[ClientProxy, Result] | BaseException],
]:
    """Select the results that can be averaged together, and log the others.

    Args:
        server_round: The round, for the log.
        results: The replies, in any order.
        failures: What Flower counts as failures already.
        check: Returns what is needed of a client's reply, or raises a ``ReplyError``.
        log: Logs the dropped replies.

    Returns:
        The selection, in the order of the clients' numbers; its contents with their clients, for
        the inner strategy; and all failures, the dropped results among them.
    """
    ordered = sorted(results, key=_by_client)
    failed = [
        DroppedReply(f"(failure {number})", _reason_of(failure))
        for number, failure in enumerate(failures, start=1)
    ]
    replies = [(client.cid, result) for client, result in ordered]
    selection = select(server_round, replies, check, log, failed)
    usable = [client for client, _ in ordered if client.cid in selection.usable]
    contents = _defined(server_round, list(selection.checked.values()))
    accepted = list(zip(usable, contents, strict=True))
    all_failures = list(failures)
    all_failures += [pair for pair in ordered if pair[0].cid not in selection.usable]
    return selection, accepted, all_failures


def _defined(server_round: int, checked: Sequence[CheckedReply[Result]]) -> list[Result]:
    """Return results whose metrics, and loss, are those of ``define_metrics``."""
    weights = [reply.update.weight for reply in checked]
    contents = [reply.content for reply in checked]
    losses = [{"loss": c.loss} if isinstance(c, EvaluateRes) else {} for c in contents]
    metrics, _ = define_metrics(server_round, [c.metrics for c in contents], weights)
    defined, _ = define_metrics(server_round, losses, weights)
    return [
        replace(content, metrics=own, **loss)
        for content, own, loss in zip(contents, metrics, defined, strict=True)
    ]


def _by_client(reply: tuple[ClientProxy, object]) -> tuple[int, str]:
    client, _ = reply
    return len(client.cid), client.cid  # numbers written as text: 9 comes before 10


def _reason_of(failure: tuple[ClientProxy, FitRes | EvaluateRes] | BaseException) -> str:
    """Return why a client failed, as far as Flower reports it."""
    if isinstance(failure, BaseException):
        cause = failure.args[0] if failure.args else failure
        return shortened(f"it failed: {getattr(cause, 'reason', cause)}")
    client, result = failure
    status = result.status
    return shortened(f"client {client.cid} returned status {status.code}: {status.message!r}")


def _buffers(blob: Scalar | None, parameters: Arrays) -> dict[str, Array]:
    """Return the momentum buffers that a client sent, none if it sent none."""
    if not isinstance(blob, bytes):
        return {}
    check_blob(len(blob), parameters)
    try:
        buffers: dict[str, Array] = safetensors.numpy.load(blob)
    except Exception as error:  # safetensors and numpy raise several types
        raise ReplyError(
            f"its {MOMENTUM_BLOB!r} cannot be read ({error}): add **local.metrics to the metrics "
            "that fit() returns, unchanged."
        ) from error
    return buffers
