from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fixbn_flwr.array_records import arrays_of, record_of

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "strided": np.arange(24, dtype=np.float16).reshape(2, 3, 4)[:, :, ::2],
    "counter": np.asarray(7, dtype=np.int64),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "big-endian": np.arange(3, dtype=">f4"),
}


def npy(array: Array, data: bytes) -> ArrayRecord:
    return ArrayRecord({"a": Array(array.dtype, array.shape, array.stype, data)})


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_survive_a_round_trip_through_a_record(name: str) -> None:
    (restored,) = arrays_of(record_of({name: ARRAYS[name]})).values()
    flowers = Array(ARRAYS[name]).numpy()
    assert restored.dtype == flowers.dtype == ARRAYS[name].dtype
    assert restored.shape == flowers.shape
    np.testing.assert_array_equal(restored, flowers)


def test_arrays_keep_their_order_and_are_writable() -> None:
    record = record_of(ARRAYS)
    arrays = arrays_of(record)
    assert list(arrays) == list(ARRAYS)
    torch.from_numpy(arrays["weight"]).zero_()
    assert arrays_of(record)["weight"][1, 2] == 5


@pytest.mark.parametrize("keep", [0, 5, 9, 60, 128, 151])
def test_a_truncated_array_raises_a_value_error(keep: int) -> None:
    array = Array(ARRAYS["weight"])
    with pytest.raises(ValueError):  # noqa: PT011  # the message is numpy's
        arrays_of(npy(array, array.data[:keep]))


def test_a_header_of_object_type_raises_a_value_error() -> None:
    array = Array(ARRAYS["weight"])
    data = array.data.replace(b"'<f4'", b"'|O' ")
    with pytest.raises(ValueError):  # noqa: PT011  # the message is numpy's
        arrays_of(npy(array, data))


def test_a_header_larger_than_the_data_raises_a_value_error() -> None:
    array = Array(ARRAYS["weight"])
    data = array.data.replace(b"(2, 3), }      ", b"(2, 3000000), }")
    assert data != array.data
    with pytest.raises(ValueError):  # noqa: PT011  # the message is numpy's
        arrays_of(npy(array, data))
