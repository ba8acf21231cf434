"""Limits on the size of a reply and of the numbers in it, checked before anything is decoded.

A server that decodes whatever arrives can be brought down by one client. A client's arrays are as
large as those it was sent, and its momentum buffers as large as their parameters, so larger ones
are refused. Everything else may be as large as the model and a mebibyte more, or as large as the
user allows.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.common import RecordDict

from fixbn_flwr.errors import NoExamplesError, ReplyError
from fixbn_flwr.method.averaging import Arrays
from fixbn_flwr.method.round_config import MOMENTUM

HEADER = 1024  # bytes per array besides its values; the header of np.save has 128
EXTRA = 2**20  # bytes of metrics and config beyond the size of the model
MOST_EXAMPLES = 2**53  # floats represent every integer up to here, and sums stay finite


def check_weight(weight: object, weighted_by: str) -> float:
    """Return a client's weight in the average.

    Args:
        weight: Its number of examples, as it came.
        weighted_by: The name of the metric, for the message.

    Raises:
        NoExamplesError: If it is zero.
        ReplyError: If it is not a number above zero and at most 2**53.
    """
    if weight == 0 and not isinstance(weight, bool):
        raise NoExamplesError("has no examples: left out of the average")
    number = weight if isinstance(weight, int | float) and not isinstance(weight, bool) else 0
    if 0 < number <= MOST_EXAMPLES:
        return float(number)
    raise ReplyError(
        f"its metric {weighted_by!r} is {shown(weight)} and must be a number above zero and at "
        "most 2**53: it is the client's weight in the average. Return the number of examples under "
        "this name (numpy_client_mod returns it as 'num-examples', the default weighted_by_key)."
    )


def shown(value: object) -> str:
    """Return a short text for a value that came from a client, however long it is."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"  # too long for str()
    return reprlib.repr(value)


def check_sizes(sizes: Mapping[str, int], sent: Arrays) -> None:
    """Refuse arrays that are larger than those that were sent.

    Args:
        sizes: Their bytes as they came, by name. All names are in ``sent``.
        sent: The arrays that were sent.

    Raises:
        ReplyError: If one is larger.
    """
    for name, size in sizes.items():
        # As float64, which is converted, or as complex128.
        if size > max(8, sent[name].itemsize) * sent[name].size + HEADER:
            raise ReplyError(
                f"array {name!r} takes {size:,} bytes and was sent with "
                f"{sent[name].nbytes:,}: return the arrays of the model that was sent. It was not "
                "decoded."
            )


def check_blob(size: int, parameters: Arrays) -> None:
    """Refuse a blob of momentum buffers that is larger than the model's parameters.

    Raises:
        ReplyError: If it is larger.
    """
    most = _bytes_of_model(parameters) + sum(map(len, parameters)) + HEADER * len(parameters)
    if size > most:
        raise ReplyError(
            f"its momentum buffers take {size:,} bytes and the model's parameters at most "
            f"{most:,}: add **local.metrics to the metrics that fit() returns, unchanged. They "
            "were not decoded."
        )


def check_records(content: RecordDict, model_key: str, limit: int) -> None:
    """Refuse a reply that holds too much besides the model and momentum buffers.

    Args:
        content: The reply.
        model_key: The key of the model's record.
        limit: The number of bytes that metrics, config records and other arrays may take together.

    Raises:
        ReplyError: If they take more, or a metric is an integer that no message can hold.
    """
    metrics, configs = content.metric_records.values(), content.config_records.values()
    size = sum(_size_of(record.items()) for record in metrics)
    size += sum(_size_of(record.items()) for record in configs)
    size += sum(
        len(array.data)
        for key, record in content.array_records.items()
        if key not in (model_key, MOMENTUM)
        for array in record.values()
    )
    _check_size(size, limit)
    for record in metrics:
        _check_numbers(record)


def check_metrics(metrics: Mapping[str, Any], limit: int) -> None:
    """Refuse metrics of the older generation as ``check_records`` does.

    Raises:
        ReplyError: If they take more than ``limit`` bytes, or hold such an integer.
    """
    _check_size(_size_of(metrics.items()), limit)
    _check_numbers(metrics)


def extra_bytes(sent: Arrays, max_extra_bytes: int | None) -> int:
    """Return how many bytes a reply may hold besides the model and momentum buffers.

    Args:
        sent: The model that was sent.
        max_extra_bytes: The user's limit. None: the size of the model and a mebibyte.
    """
    return EXTRA + _bytes_of_model(sent) if max_extra_bytes is None else max_extra_bytes


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise ReplyError(
            f"besides the model it holds {size:,} bytes of metrics, config records and arrays, and "
            f"{limit:,} are allowed: return less, or use FixBN(..., max_extra_bytes={size}). They "
            "were not read."
        )


def _check_numbers(metrics: Mapping[str, Any]) -> None:
    # No message holds integers of more than 64 bits, and their sums with floats fail.
    for name, value in metrics.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ReplyError(
                    f"its metric {name!r} is a whole number of {number.bit_length()} bits: return "
                    "it as a float."
                )


def _bytes_of_model(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


# Flower's count_bytes fails for an empty string and an empty list.
def _size_of(items: Iterable[tuple[object, object]]) -> int:
    return sum(len(str(name)) + _size_of_value(value) for name, value in items)


def _size_of_value(value: object) -> int:
    if isinstance(value, list):
        texts = bool(value) and isinstance(value[0], str | bytes)  # all of one type in a record
        return 8 * len(value) + (sum(map(len, value)) if texts else 0)
    return 8 + (len(value) if isinstance(value, str | bytes) else 0)
