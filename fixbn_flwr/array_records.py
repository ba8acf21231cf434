"""Convert between Flower's ArrayRecords and numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from flwr.common import Array as FlowerArray
from flwr.common import ArrayRecord

from fixbn_flwr.flower_compat import SType, make_array
from fixbn_flwr.method.averaging import Array, Arrays

if TYPE_CHECKING:
    from torch import nn

_NUMBERS = "biufc"
"""Kinds of dtype: booleans, integers, floating point, complex."""

_NPY_1_0 = b"\x93NUMPY\x01\x00"  # what np.save writes first; 2.0 and 3.0 are for structured dtypes


def arrays_of(record: Mapping[str, FlowerArray]) -> dict[str, Array]:
    """Return copies of a record's arrays as numpy arrays, by name.

    Raises:
        ValueError: If an array is not in numpy's format.
    """
    # The bytes of a message are read-only, and torch needs writable arrays.
    return {name: view_of(array).copy(order="K") for name, array in record.items()}


def record_of(arrays: Arrays) -> ArrayRecord:
    """Return a record of numpy arrays, in the format that ``np.save`` writes."""
    return record_with({name: _flower_array(array) for name, array in arrays.items()})


def record_with(arrays: Mapping[str, FlowerArray]) -> ArrayRecord:
    """Return a record of these very Arrays; the record's constructor would copy each, slowly."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def _flower_array(array: Array) -> FlowerArray:
    """Return what ``FlowerArray(array)`` does, several times faster: headers are cached."""
    if array.dtype.kind not in _NUMBERS:
        return FlowerArray(array)
    order: Literal["C", "F"] = "F" if array.flags.fnc else "C"
    header = _npy_header(array.dtype.str, array.shape, order == "F")
    return make_array(str(array.dtype), array.shape, header + array.tobytes(order))


@lru_cache(maxsize=4096)
def _npy_header(dtype: str, shape: tuple[int, ...], fortran_order: bool) -> bytes:
    """Return what ``np.save`` writes before the values."""
    file = BytesIO()
    description = {"descr": dtype, "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()


def view_of(array: FlowerArray) -> Array:
    """Return a read-only view of an array's values. Nothing is copied or allocated.

    Raises:
        ValueError: If the array is not in the format that ``np.save`` writes.
    """
    if array.stype != SType.NUMPY:
        raise ValueError(f"{array.stype[:100]!r} is not numpy's serialization type")
    return view_of_bytes(array.data)


def view_of_bytes(data: bytes) -> Array:
    """Return a read-only view of the values in bytes that ``np.save`` wrote.

    Parsed headers are cached, so this is many times faster than ``np.load``. It is also safe for
    untrusted bytes: ``np.load`` opens archives too, and allocates whatever size a header claims.

    Raises:
        ValueError: If the bytes are anything else, such as objects (pickle) or strings.
    """
    if not data.startswith(_NPY_1_0):
        raise ValueError("it does not start with the header that np.save writes")
    start = 10 + int.from_bytes(data[8:10], "little")
    try:
        shape, fortran_order, dtype = _header(data[:start])
        if dtype.kind not in _NUMBERS:
            raise ValueError(f"it holds {dtype}, not numbers")
        return np.ndarray(shape, dtype, data, start, order="F" if fortran_order else "C")
    except Exception as error:  # numpy's parser raises errors of a dozen types
        raise ValueError(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=4096)
def _header(beginning: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse the header of an npy file. A model's arrays have few different headers."""
    file = BytesIO(beginning)
    np.lib.format.read_magic(file)
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, fortran_order, dtype


def arrays_from(model: nn.Module) -> ArrayRecord:
    """Return a model's ``state_dict`` as a record; bfloat16 becomes float32.

    Flower's records hold numpy arrays, and numpy has no bfloat16.

    Examples:
        >>> import torch
        >>> model = torch.nn.BatchNorm1d(2).to(torch.bfloat16)
        >>> arrays_from(model)["weight"].dtype
        'float32'

    Args:
        model: The model, of any types.
    """
    import torch

    state = model.state_dict()
    return ArrayRecord({n: v.float() if v.dtype == torch.bfloat16 else v for n, v in state.items()})


def load_arrays(model: nn.Module, record: ArrayRecord) -> None:
    """Load a record that ``arrays_from`` made into a model, which keeps its own types.

    Examples:
        >>> import torch
        >>> model = torch.nn.BatchNorm1d(2).to(torch.bfloat16)
        >>> load_arrays(model, arrays_from(model))
        >>> model.weight.dtype
        torch.bfloat16

    Args:
        model: The model, built as the one that the record is of.
        record: All arrays of its ``state_dict``.
    """
    model.load_state_dict(record.to_torch_state_dict(), strict=True)
