"""Flower's ArrayRecords to numpy arrays and back."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord

from fixbn_flwr.flower_compat import SType
from fixbn_flwr.method.averaging import Array, Arrays

if TYPE_CHECKING:
    from torch import nn

_NUMBERS = "biufc"
"""Kinds of dtype: truth values, integers, floating point, complex."""

_NPY_1_0 = b"\x93NUMPY\x01\x00"  # how np.save begins; 2.0 and 3.0 are for structures


def arrays_of(record: ArrayRecord) -> dict[str, Array]:
    """Return a record's arrays as numpy arrays of their own, by name.

    Raises:
        ValueError: an array's bytes are not those of a numpy array.
    """
    # Copies: a message's bytes cannot be written to, and torch wants what can.
    return {name: view_of(array).copy(order="K") for name, array in record.items()}


def record_of(arrays: Arrays) -> ArrayRecord:
    """Return numpy arrays as a record, by name."""
    return ArrayRecord({name: FlowerArray(array) for name, array in arrays.items()})


def view_of(array: FlowerArray) -> Array:
    """Return an array's values where they lie, read-only: nothing is copied or allocated.

    Raises:
        ValueError: they are not those of a numpy array as ``np.save`` writes it.
    """
    if array.stype != SType.NUMPY:
        raise ValueError(f"{array.stype[:100]!r} is not a numpy array's serialization")
    return view_of_bytes(array.data)


def view_of_bytes(data: bytes) -> Array:
    """Return the values in what ``np.save`` wrote where they lie, read-only.

    Many times faster than ``np.load``, as headers are parsed once and kept, and safe with bytes of
    anybody's: ``np.load`` opens archives too, and allocates whatever size a header claims.

    Raises:
        ValueError: the bytes are something else, objects (pickle) or text among it.
    """
    if not data.startswith(_NPY_1_0):
        raise ValueError("it does not begin as np.save writes an array of numbers")
    start = 10 + int.from_bytes(data[8:10], "little")
    try:
        shape, fortran_order, dtype = _header(data[:start])
        if dtype.kind not in _NUMBERS:
            raise ValueError(f"it holds {dtype} and no numbers")
        return np.ndarray(shape, dtype, data, start, order="F" if fortran_order else "C")
    except Exception as error:  # numpy's parser raises errors of a dozen types
        raise ValueError(f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=4096)
def _header(beginning: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse the beginning of an npy file, up to its data; a model's arrays have few different."""
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
