"""The arrays of a message end to end in one flat array a dtype, and back, bit for bit.

An ArrayRecord becomes one of flat arrays, each called after its dtype, and a ConfigRecord beside
it, whose key is "fixbn-layout:" and the record's, says what lies in them, array after array: names,
dtypes, shapes ("64,3,3,3"; "" for one of no dimensions) and the order in memory, C or F. A record
that holds anything but numbers as numpy saves them stays as it is.

What arrives may come from a client that means harm: nothing is allocated on its word, only slices
of what it really sent are taken, and all must be used up.
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
_MOST_ARRAYS = 100_000  # in a record; each costs memory beyond its values

Order = Literal["C", "F"]


class Packer:
    """Packs contents; a record that several of them share is packed once."""

    def __init__(self) -> None:
        self._packed: dict[int, tuple[ArrayRecord, tuple[ArrayRecord, ConfigRecord] | None]] = {}

    def pack(self, content: RecordDict) -> RecordDict:
        """Return a content with the arrays of every record packed, as far as that can be done."""
        packed = RecordDict()
        for key, record in content.items():
            pair = self._pack(record) if isinstance(record, ArrayRecord) else None
            if pair is None:
                packed[key] = record
            else:
                packed[key], packed[LAYOUT + str(key)] = pair
        return packed

    def _pack(self, record: ArrayRecord) -> tuple[ArrayRecord, ConfigRecord] | None:
        # With the record itself, lest another one is made at the same place in memory.
        if id(record) not in self._packed:
            self._packed[id(record)] = (record, _packed(record))
        return self._packed[id(record)][1]


def is_packed(content: RecordDict) -> bool:
    """Tell whether a content holds packed arrays."""
    return any(str(key).startswith(LAYOUT) for key in content.config_records)


def unpack(content: RecordDict) -> RecordDict:
    """Return a content as it was before :meth:`Packer.pack`, its records in the same order.

    Raises:
        ReplyError: flat arrays and layout do not fit together; the message says where.
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
        raise _damage(min(layouts), "a layout without its arrays")
    return unpacked


def _packed(record: ArrayRecord) -> tuple[ArrayRecord, ConfigRecord] | None:
    """Return a record's flat arrays and their layout; None where it must stay as it is."""
    try:
        views = {name: view_of(array) for name, array in record.items()}
    except ValueError:
        return None
    if not views:
        return None
    values: dict[str, list[bytes]] = defaultdict(list)
    orders: list[str] = []
    for view in views.values():
        # As np.save decides it: only what is not in C order anyway is written in Fortran's.
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
        _words(key, layout, field) for field in ("names", "dtypes", "shapes", "orders")
    )
    if not len(names) == len(dtypes) == len(shapes) == len(orders) <= _MOST_ARRAYS:
        raise _damage(key, f"a layout of {len(names)} names and {len(shapes)} shapes")
    if len(set(names)) < len(names):
        raise _damage(key, "a name that stands twice in the layout")
    used = dict.fromkeys(flat, 0)
    arrays = {}
    for name, dtype, shape_text, order in zip(names, dtypes, shapes, orders, strict=True):
        shape = _shape(key, name, shape_text)
        if dtype not in flat or order not in ("C", "F"):
            raise _damage(key, f"array {name!r} of dtype {dtype!r} and order {order!r}")
        start, end = used[dtype], used[dtype] + math.prod(shape)
        if end > flat[dtype].size:
            raise _damage(
                key, f"array {name!r} of shape {shape}, past the end of {flat[dtype].size} values"
            )
        used[dtype] = end
        try:
            values = flat[dtype][start:end].reshape(shape, order=cast(Order, order))
        except (
            ValueError,
            OverflowError,
        ) as error:  # no values, and a dimension that numpy cannot count
            raise _damage(key, f"array {name!r} of shape {shape} ({error})") from error
        arrays[name] = Array(values)
    for dtype, values in flat.items():
        if used[dtype] != values.size:
            raise _damage(key, f"{values.size} values of {dtype}, of which {used[dtype]} are named")
    return ArrayRecord(arrays)


def _flat(key: str, name: str, array: Array) -> NDArray[Any]:
    try:
        values = view_of(array)
    except ValueError as error:
        raise _damage(key, f"a flat array {name!r} that cannot be read ({error})") from error
    if values.ndim != 1 or name != _PACKED + values.dtype.str:
        raise _damage(key, f"a flat array {name!r} of {values.dtype} and shape {values.shape}")
    return values


def _words(key: str, layout: ConfigRecord, field: str) -> Sequence[str]:
    words = layout.get(field)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _damage(key, f"a layout without its list of {field}")
    return cast(list[str], words)


def _shape(key: str, name: str, text: str) -> tuple[int, ...]:
    if text and not (text.isascii() and text.replace(",", "").isdigit() and len(text) < 1000):
        raise _damage(key, f"array {name!r} of shape {text[:100]!r}")
    try:
        return tuple(int(size) for size in text.split(",")) if text else ()
    except ValueError as error:  # a comma too many
        raise _damage(key, f"array {name!r} of shape {text[:100]!r}") from error


def _damage(key: str, what: str) -> ReplyError:
    return ReplyError(
        f"its packed record {key!r} holds {what}: it was damaged on its way, or client and server "
        "use different versions of fixbn-flwr."
    )
