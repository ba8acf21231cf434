"""Flower's ArrayRecords to numpy arrays and back."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord
from flwr.common.constant import SType

from fixbn_flwr.averaging import Array, Arrays

_NPY_1_0 = b"\x93NUMPY\x01\x00"  # how the files of np.save begin, but for odd ones


def arrays_of(record: ArrayRecord) -> dict[str, Array]:
    """Return a record's arrays as numpy arrays, by name.

    Raises:
        ValueError: an array's bytes are not those of a numpy array.
    """
    return {name: _decoded(array) for name, array in record.items()}


def record_of(arrays: Arrays) -> ArrayRecord:
    """Return numpy arrays as a record, by name."""
    return ArrayRecord({name: FlowerArray(array) for name, array in arrays.items()})


def view_of(array: FlowerArray) -> Array:
    """Return an array's values where they lie, read-only: nothing is copied or allocated.

    Raises:
        ValueError: they are not those of a numpy array as ``np.save`` writes it.
    """
    if array.stype != SType.NUMPY or not array.data.startswith(_NPY_1_0):
        raise ValueError(f"{array.stype!r} does not begin as np.save writes an array")
    try:
        return _view(array.data)
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _decoded(array: FlowerArray) -> Array:
    """Return what ``array.numpy()`` does, many times faster: headers are parsed once and kept."""
    try:
        if array.stype != SType.NUMPY or not array.data.startswith(_NPY_1_0):
            return array.numpy()
        view = _view(array.data)
    except Exception as error:  # numpy's parser raises errors of a dozen types
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return view.copy(order="K")  # bytes cannot be written to, and torch wants what can


def _view(data: bytes) -> Array:
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran_order, dtype = _header(data[:start])
    return np.ndarray(shape, dtype, data, start, order="F" if fortran_order else "C")


@lru_cache(maxsize=4096)
def _header(beginning: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse the beginning of an npy file, up to its data; a model's arrays have few different."""
    file = BytesIO(beginning)
    np.lib.format.read_magic(file)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, fortran_order, dtype
