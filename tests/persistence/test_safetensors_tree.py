"""Trees survive a round trip with all bits and types; unsupported values and files are refused."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from fixbn_flwr.array_records import record_of
from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.persistence.safetensors_tree import can_be_kept, from_bytes, to_bytes

TREES: dict[str, Any] = {
    "nothing": None,
    "numbers": [1, -2.5, float("inf"), True, 2**70, "text", ""],
    "nested": {"a": [{"b": (1, (2, "x"))}], "empty": {}, "none": None},
    "arrays": {"w": np.arange(6.0).reshape(2, 3), "n": np.asarray(3), "empty": np.zeros((0, 2))},
    "types": [np.zeros(2, dtype) for dtype in ("bool", "uint8", "int64", "float16", "float32")],
    "one number": np.float32(0.1),
    "one array": np.arange(3),
    "order": {"f": np.asfortranarray(np.arange(6).reshape(2, 3)), "cut": np.arange(9)[::2]},
    "mappings": [
        OrderedDict(z=1, a=np.ones(2)),
        defaultdict(list, a=[np.ones(1)]),
        defaultdict(float),
        {"last": MetricRecord({"loss": [0.5, 1.0], "n": 3})},
        ConfigRecord({"name": "x", "on": [True, False]}),
    ],
    "names alike": {"a/b": np.ones(1), "a": {"b": np.zeros(1)}, "__metadata__": np.ones(2)},
}


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray | np.generic):
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)
    elif isinstance(one, Mapping):
        assert getattr(one, "default_factory", None) is getattr(other, "default_factory", None)
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    else:
        assert one == other


@pytest.mark.parametrize("name", TREES)
def test_a_tree_survives_a_round_trip(name: str) -> None:
    content = to_bytes(TREES[name])
    assert_same(from_bytes(content), TREES[name])
    assert to_bytes(from_bytes(content)) == content


def test_nan_keeps_its_bits() -> None:
    odd = np.frombuffer(np.uint64(0x7FF8000000000123).tobytes(), np.float64)
    assert from_bytes(to_bytes({"x": odd}))["x"].tobytes() == odd.tobytes()


def test_a_record_keeps_its_order() -> None:
    record = record_of({"z": np.ones(2, np.float32), "a": np.asarray(1)})
    restored = from_bytes(to_bytes({"model": record}))["model"]
    assert isinstance(restored, ArrayRecord)
    assert list(restored) == ["z", "a"]
    assert [array.data for array in restored.values()] == [array.data for array in record.values()]


class Best(NamedTuple):
    server_round: int


class Scores(dict[str, float]):
    """A user's dictionary."""


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"best": Best(3)}, "best is a Best"),
        (Scores(a=1.0), "it is a Scores"),
        (Counter("a"), "it is a Counter"),
        (defaultdict(lambda: 0, a=1), "it is a defaultdict"),
        ({"a": np.ma.masked_array([1.0], [True])}, "a is a MaskedArray"),
        (ConfigRecord({"key": b"x"}), "key is a bytes"),
        ({"a": {"b": object()}}, "a/b is a object"),
        ([1, {2}], "1 is a set"),
        ({"a": {1: 2}}, "a is a dict"),
        ({"a": {"$array": "b"}}, "a is a dict"),
        ({"a": np.array([object()])}, "a is a ndarray"),
        ({"w": np.zeros(1, np.complex64)}, "w is a ndarray of complex64, which"),
        (len, "it is a builtin_function_or_method"),
    ],
)
def test_the_error_names_an_unsupported_value(tree: Any, where: str) -> None:
    assert not can_be_kept(tree)
    with pytest.raises(CheckpointError, match=where):
        to_bytes(tree)


def of_json(text: str) -> bytes:
    return safetensors.numpy.save({"x": np.ones(1)}, metadata={"tree": text})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not safetensors at all",
        to_bytes(TREES["arrays"])[:-1],
        to_bytes(TREES["arrays"])[:40],
        safetensors.numpy.save({"x": np.ones(1)}),
        safetensors.numpy.save({"x": np.ones(1)}, metadata={"other": "1"}),
        of_json("{"),
        of_json(json.dumps({"$array": "y"})),
        of_json(json.dumps({"$array": ["x"]})),
        of_json(json.dumps({"$record": [1]})),
        of_json(json.dumps({"$tuple": 3})),
        of_json(json.dumps({"$metrics": {"loss": "low"}})),
        of_json(json.dumps({"$ordered": 3})),
        of_json(json.dumps({"$default": "eval", "$items": {}})),
        of_json(json.dumps({"$default": ["list"], "$items": {}})),
        of_json("[" * 100_000),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="this file is not a checkpoint"):
        from_bytes(content)
