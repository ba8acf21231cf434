"""Split messages and records into a small header and the large byte strings beside it.

The header is a pickle. Arrays and other byte strings of records are not part of it, so that they
can travel through shared memory.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable
from typing import Any

from flwr.app import Array, ConfigRecord

from fixbn_flwr.flower_compat import SType, make_array

LARGE = 4096  # bytes; a shorter value of a ConfigRecord stays in the header


def split(content: Any) -> tuple[bytes, list[memoryview]]:
    """Return the header of messages or records, and their large byte strings in order.

    Args:
        content: A message, a ``RecordDict``, or a tuple of them.
    """
    header, large = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(header, protocol=5, buffer_callback=large.append).dump(content)
    return header.getvalue(), [buffer.raw() for buffer in large]


def join(header: bytes, large: Iterable[memoryview]) -> Any:
    """Return what ``split`` took apart. Byte strings are copied."""
    return pickle.loads(header, buffers=large)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Array:
            return _array, (obj.dtype, obj.shape, obj.stype, pickle.PickleBuffer(obj.data))
        if type(obj) is ConfigRecord:
            large = {k: v for k, v in obj.items() if isinstance(v, bytes) and len(v) >= LARGE}
            small = {k: None if k in large else v for k, v in obj.items()}
            return _config, (small, {k: pickle.PickleBuffer(v) for k, v in large.items()})
        return NotImplemented


def _array(dtype: str, shape: tuple[int, ...], stype: str, data: memoryview) -> Array:
    if stype == SType.NUMPY:
        return make_array(dtype, shape, bytes(data))
    return Array(dtype, shape, stype, bytes(data))


def _config(small: dict[str, Any], large: dict[str, memoryview]) -> ConfigRecord:
    return ConfigRecord({k: bytes(large[k]) if k in large else v for k, v in small.items()})
