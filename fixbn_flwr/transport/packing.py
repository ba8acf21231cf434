"""Pack the arrays of a message into one flat array per dtype, and unpack them, bit for bit.

An ArrayRecord is replaced by a record of flat arrays, each named after its dtype. A ConfigRecord
beside it, with the key "fixbn-layout:" plus the record's key, lists the arrays in them: names,
dtypes, shapes ("64,3,3,3"; "" for a scalar) and memory orders, C or F. A record that holds anything
but numeric arrays in numpy's format stays as it is.

A packed message may come from a malicious client. Nothing is allocated on its word: unpacking only
slices the bytes that it sent, and every byte must be used.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fixbn_flwr.array_records import view_of
from fixbn_flwr.errors import ReplyError

LAYOUT = "fixbn-layout:"
_PACKED = "fixbn-packed:"
_MAX_ARRAYS = 100_000  # per record; each one costs memory beyond its values

Order = Literal["C", "F"]


class Packer:
    """Packs the contents of messages. A record that several messages share is packed once."""

    def __init__(self) -> None:
        self._packed: dict[int, tuple[ArrayRecord, tuple[ArrayRecord, ConfigRecord] | None]] = {}

    def pack(self, content: RecordDict) -> RecordDict:
        """Return a copy of the content in which every record that can be packed is packed."""
        packed = RecordDict()
        for key, record in content.items():
            pair = self._pack(record) if isinstance(record, ArrayRecord) else None
            if pair is None:
                packed[key] = record
            else:
                packed[key], packed[LAYOUT + str(key)] = pair
        return packed

    def _pack(self, record: ArrayRecord) -> tuple[ArrayRecord, ConfigRecord] | None:
        # Keep the record alive: otherwise a new one could get the same id.
        if id(record) not in self._packed:
            self._packed[id(record)] = (record, _packed(record))
        return self._packed[id(record)][1]


def is_packed(content: RecordDict) -> bool:
    """Return whether a content holds packed arrays."""
    return any(str(key).startswith(LAYOUT) for key in content.config_records)


def unpack(content: RecordDict) -> RecordDict:
    """Return the content that :meth:`Packer.pack` packed, with its records in the same order.

    Raises:
        ReplyError: If the flat arrays and their layout do not match. The message says where.
    """
    layouts = {
        str(key).removeprefix(LAYOUT): layout
        for key, layout in content.config_records.items()
        if str(key).startswith(LAYOUT)
    }
    unpacked = RecordDict()
    for key, record in content.items():
        if isinstance(record, ArrayRecord) and str(key) in layouts:
            unpacked[key] = _unpacked(str(key), record, layouts.pop(str(key)))
        elif not str(key).startswith(LAYOUT):
            unpacked[key] = record
    if layouts:
        raise _damaged(min(layouts), "a layout without arrays")
    return unpacked


def _packed(record: ArrayRecord) -> tuple[ArrayRecord, ConfigRecord] | None:
    """Return a record's flat arrays and their layout, or None if it cannot be packed."""
    try:
        views = {name: view_of(array) for name, array in record.items()}
    except ValueError:
        return None
    if not views:
        return None
    values: dict[str, list[bytes]] = defaultdict(list)
    orders: list[str] = []
    for view in views.values():
        # As np.save does: Fortran order only for arrays that are not also in C order.
        order: Order = "F" if view.flags.fnc else "C"
        orders.append(order)
        values[view.dtype.str].append(view.tobytes(order))
    flat = ArrayRecord(
        {
            _PACKED + dtype: Array(np.frombuffer(b"".join(parts), dtype))
            for dtype, parts in values.items()
        }
    )
    layout = ConfigRecord(
        {
            "names": list(views),
            "dtypes": [view.dtype.str for view in views.values()],
            "shapes": [",".join(map(str, view.shape)) for view in views.values()],
            "orders": orders,
        }
    )
    return flat, layout


def _unpacked(key: str, record: ArrayRecord, layout: ConfigRecord) -> ArrayRecord:
    flat = {name.removeprefix(_PACKED): _flat(key, name, array) for name, array in record.items()}
    names, dtypes, shapes, orders = (
        _strings(key, layout, field) for field in ("names", "dtypes", "shapes", "orders")
    )
    if not len(names) == len(dtypes) == len(shapes) == len(orders) <= _MAX_ARRAYS:
        raise _damaged(key, f"a layout of {len(names)} names and {len(shapes)} shapes")
    if len(set(names)) < len(names):
        raise _damaged(key, "a layout that lists a name twice")
    used = dict.fromkeys(flat, 0)
    arrays = {}
    for name, dtype, shape_text, order in zip(names, dtypes, shapes, orders, strict=True):
        shape = _shape(key, name, shape_text)
        if dtype not in flat or order not in ("C", "F"):
            raise _damaged(key, f"array {name!r} of dtype {dtype!r} and order {order!r}")
        start, end = used[dtype], used[dtype] + math.prod(shape)
        if end > flat[dtype].size:
            raise _damaged(
                key, f"array {name!r} of shape {shape}, past the end of {flat[dtype].size} values"
            )
        used[dtype] = end
        try:
            values = flat[dtype][start:end].reshape(shape, order=cast(Order, order))
        except (ValueError, OverflowError) as error:  # an empty array with a huge dimension
            raise _damaged(key, f"array {name!r} of shape {shape} ({error})") from error
        arrays[name] = Array(values)
    for dtype, values in flat.items():
        if used[dtype] != values.size:
            raise _damaged(key, f"{values.size} values of {dtype}, but a layout of {used[dtype]}")
    return ArrayRecord(arrays)


def _flat(key: str, name: str, array: Array) -> NDArray[Any]:
    try:
        values = view_of(array)
    except ValueError as error:
        raise _damaged(key, f"an unreadable flat array {name!r} ({error})") from error
    if values.ndim != 1 or name != _PACKED + values.dtype.str:
        raise _damaged(key, f"a flat array {name!r} of {values.dtype} and shape {values.shape}")
    return values


def _strings(key: str, layout: ConfigRecord, field: str) -> Sequence[str]:
    strings = layout.get(field)
    if not isinstance(strings, list) or not all(isinstance(s, str) for s in strings):
        raise _damaged(key, f"a layout without a list of {field}")
    return cast(list[str], strings)


def _shape(key: str, name: str, text: str) -> tuple[int, ...]:
    if text and not (text.isascii() and text.replace(",", "").isdigit() and len(text) < 1000):
        raise _damaged(key, f"array {name!r} of shape {text[:100]!r}")
    try:
        return tuple(int(size) for size in text.split(",")) if text else ()
    except ValueError as error:  # two commas in a row
        raise _damaged(key, f"array {name!r} of shape {text[:100]!r}") from error


def _damaged(key: str, what: str) -> ReplyError:
    return ReplyError(
        f"its packed record {key!r} holds {what}: it was damaged in transit, or client and server "
        "have different versions of fixbn-flwr. Install the same version on both."
    )
