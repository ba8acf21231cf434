"""The older generation's replies: taken apart, checked, put in order, and the bad sorted out.

The counterpart of ``fixbn_flwr.server.reply_checks`` and ``fixbn_flwr.server.reply_collection``, with the same checks.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import safetensors.numpy
from flwr.common import EvaluateRes, FitRes, Scalar
from flwr.server.client_proxy import ClientProxy

from fixbn_flwr.array_records import view_of_bytes
from fixbn_flwr.errors import ReplyError
from fixbn_flwr.log import shortened
from fixbn_flwr.method.averaging import Array, Arrays, Kind, of_kind
from fixbn_flwr.method.round_config import MOMENTUM
from fixbn_flwr.method.server_rules import Update
from fixbn_flwr.server.failed_rounds import Problem, log_problems
from fixbn_flwr.server.reply_checks import UNLIKE_THE_OTHERS, checked_update, unlike_the_others
from fixbn_flwr.server.reply_limits import check_blob, check_metrics, check_sizes

Result = TypeVar("Result", FitRes, EvaluateRes)
Read = TypeVar("Read")


def read_result(
    result: FitRes, sent: Arrays, *, with_momentum: bool
) -> tuple[Update, list[Array], dict[str, Scalar]]:
    """Take a reply apart: what FixBN averages, and what the wrapped strategy may see.

    Args:
        result: what the client's ``fit`` returned.
        sent: the arrays that it was sent, by name and in order.
        with_momentum: whether momentum buffers must stand among the metrics.

    Returns:
        Statistics, counters, buffers and weight; the parameters; the metrics without the buffers.

    Raises:
        ReplyError: the reply must not be averaged; the message says which array and why.
    """
    tensors = result.parameters.tensors
    if len(tensors) != len(sent):
        raise ReplyError(
            f"it holds {len(tensors)} arrays and was sent {len(sent)}: return all of "
            "model.state_dict(), in its order, from fit()."
        )
    check_sizes({name: len(data) for name, data in zip(sent, tensors, strict=True)}, sent)
    metrics = dict(result.metrics)
    blob = metrics.pop(MOMENTUM, None)
    check_metrics(metrics, sent)
    try:
        arrays = {name: view_of_bytes(data) for name, data in zip(sent, tensors, strict=True)}
    except ValueError as error:
        raise ReplyError(
            f"its arrays cannot be read ({error}): return numpy arrays from fit()."
        ) from error
    momentum = _buffers(blob, of_kind(sent, Kind.PARAMETER)) if with_momentum else None
    update = checked_update(arrays, momentum, result.num_examples, "num_examples", sent)
    return update, list(of_kind(arrays, Kind.PARAMETER).values()), metrics


def form_of(metrics: Mapping[str, Scalar]) -> Hashable:
    """Return what must be alike in metrics to be averaged: names, and which are numbers.

    Momentum buffers, which stand among them in a round of training, are looked at on their own.
    """
    return frozenset(
        (name, isinstance(value, int | float))
        for name, value in metrics.items()
        if name != MOMENTUM
    )


def sorted_out(
    server_round: int,
    results: Iterable[tuple[ClientProxy, Result]],
    failures: Sequence[tuple[ClientProxy, Result] | BaseException],
    read: Callable[[ClientProxy, Result], Read],
    form: Callable[[Result, Read], Hashable],
) -> tuple[
    list[tuple[ClientProxy, Result, Read]],
    list[Problem],
    list[tuple[ClientProxy, Result] | BaseException],
]:
    """Return the replies that can be averaged together, as read, and log the others.

    Args:
        server_round: the round, for the log.
        results: the replies, in any order.
        failures: what Flower counts as failures already.
        read: takes a client's reply apart; a ``ReplyError`` tells why it must not count.
        form: of a reply and what was read; one unlike most others' must not count either.

    Returns:
        The usable ones, in an order that lasts; a client and a reason for each of the others; the
        others themselves, as strategies are given them.
    """
    usable: list[tuple[ClientProxy, Result, Read]] = []
    rejected = list(failures)
    problems: list[Problem] = [
        (f"(failure {number})", _reason_of(f)) for number, f in enumerate(failures, start=1)
    ]
    for client, result in sorted(results, key=_by_client):
        try:
            usable.append((client, result, read(client, result)))
        except ReplyError as problem:
            problems.append((client.cid, shortened(str(problem))))
            rejected.append((client, result))
    forms = [form(result, part) for _, result, part in usable]
    for place in unlike_the_others(forms)[::-1]:
        client, result, _ = usable.pop(place)
        problems.append((client.cid, UNLIKE_THE_OTHERS))
        rejected.append((client, result))
    log_problems(server_round, problems)
    return usable, problems, rejected


def _by_client(reply: tuple[ClientProxy, object]) -> tuple[int, str]:
    """Sums of floats depend on their order, and replies arrive in any."""
    client, _ = reply
    return len(client.cid), client.cid  # numbers written as text: 9 comes before 10


def _reason_of(failure: tuple[ClientProxy, FitRes | EvaluateRes] | BaseException) -> str:
    """Return why a client failed, as far as Flower passes it on."""
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
    except Exception as error:  # safetensors' own, and numpy's of several types
        raise ReplyError(
            f"its {MOMENTUM!r} cannot be read ({error}): add **local.metrics to the metrics that "
            "fit() returns, unchanged."
        ) from error
    return buffers
