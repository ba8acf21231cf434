"""What a client that means harm can put into a reply: hypothesis strategies for records and bytes."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st

Arrays = dict[str, np.ndarray[Any, Any]]

SENT: Arrays = {
    "w": np.float32([[1, 2, 3], [4, 5, 6]]),
    "n.running_mean": np.float32([0, 1]),
    "n.running_var": np.float32([1, 2]),
    "n.num_batches_tracked": np.asarray(np.int64(3)),
    "scale": np.asarray(np.float32(1)),
}
PARAMETERS = ["w", "scale"]
WEIGHTED_BY = "num-examples"

REMEDY = (
    r"[Rr]eturn |reply with |[Gg]ive |add \*\*|[Uu]se |[Ll]et all |must build one model|helps"
    r"|below zero\.$|use different versions"
)
"""What every ReplyError says of what to do, in one of these words."""

NAMES = st.one_of(
    st.sampled_from(
        [*SENT, "../../x", "/etc/passwd", "", "\0", "fixbn-momentum", "a" * 5000, "w.running_var"]
    ),
    st.text(max_size=8),
)
_SCALARS = st.one_of(
    st.sampled_from([0, -1, 1, 2**53 + 1, 2**63, 10**400, 1e308, 5e-324, math.nan, math.inf]),
    st.floats(),
    st.integers(-(2**64), 2**64),
)
NUMBERS: st.SearchStrategy[Any] = st.one_of(
    _SCALARS, st.lists(st.floats(), max_size=4), st.lists(st.integers(), max_size=4)
)
_DESCRIPTIONS = [
    "'<f4'", "'>f4'", "'<f8'", "'|O'", "'<U7'", "'|V0'", "'|S0'", "'<M8[s]'", "'|b1'", "'<i8'",
    "[('a', '<f4')]", "[('a', '|O')]", "('<f4', (3,))", "'f4,f4'", "'<c8'", "1", "None", "'x'",
]  # fmt: skip


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.path), "w")


def npy(array: Any, *, pickles: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickles)
    return file.getvalue()


def bombs(path: Path) -> list[bytes]:
    """Bytes that numpy, if allowed to, would unpickle, or open as an archive."""
    archive = io.BytesIO()
    np.savez(archive, np.zeros(3))
    with_objects = npy(np.array([Bomb(path)], dtype=object), pickles=True)
    return [with_objects, pickle.dumps(Bomb(path)), archive.getvalue()]


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Bytes that were whole once: flipped, cut, filled up or put in twice."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 9)))
        match draw(st.sampled_from(["write", "insert", "cut", "tear", "repeat"])):
            case "write":
                data[start:end] = draw(st.binary(min_size=end - start, max_size=end - start))
            case "insert":
                data[start:start] = draw(st.binary(max_size=9))
            case "cut":
                del data[start:end]
            case "tear":
                del data[start:]
            case _:
                data[end:end] = data[start:end]
    return bytes(data)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """An npy file whose header claims anything, and few bytes behind it."""
    sizes = st.sampled_from([0, 1, 2, 3, 6, -1, 2**31, 2**62, 10**30])
    shape = tuple(draw(st.lists(sizes, max_size=4)))
    fields = (
        f"{{'descr': {draw(st.sampled_from(_DESCRIPTIONS))}, 'fortran_order': "
        f"{draw(st.sampled_from(['True', 'False', '1', '[]']))}, 'shape': {shape}, }}"
    )
    text = (fields + draw(st.sampled_from(["\n", "", " " * 60 + "\n", "(" * 300]))).encode()
    version = draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x01\x01"]))
    length = draw(st.sampled_from([len(text), 0, 65535])).to_bytes(
        2 if version == b"\x01\x00" else 4, "little"
    )
    return b"\x93NUMPY" + version + length + text + draw(st.binary(max_size=40))


def payloads(path: Path) -> st.SearchStrategy[bytes]:
    """The bytes of one array: junk, whole, damaged, of another type or shape, or a bomb."""
    whole = st.sampled_from([npy(array) for array in SENT.values()])
    values = [np.nan, np.inf, -1.0, 3e38]
    of_w = st.sampled_from([npy(np.full((2, 3), value, np.float32)) for value in values])
    return st.one_of(
        st.binary(max_size=200),
        whole,
        of_w,
        whole.flatmap(damaged),
        headers(),
        st.sampled_from(bombs(path)),
        st.just(npy(np.zeros(5000, np.float32))),
    )


@st.composite
def flower_arrays(draw: st.DrawFn, path: Path) -> Array:
    """An array of a message, whose description may have nothing to do with its bytes."""
    return Array(
        draw(st.sampled_from(["float32", "", "object", "float64", "../x"])),
        tuple(draw(st.lists(st.sampled_from([2, 3, 0, -1, 2**62]), max_size=3))),
        draw(st.sampled_from(["numpy.ndarray"] * 5 + ["", "pickle", "torch"])),
        draw(payloads(path)),
    )


@st.composite
def array_records(draw: st.DrawFn, path: Path, names: list[str]) -> ArrayRecord:
    """The arrays of these names, some of them spoilt, missing or joined by others."""
    record = ArrayRecord({name: Array(SENT[name]) for name in names})
    for name in draw(st.lists(st.sampled_from(names), max_size=2)):
        record[name] = draw(flower_arrays(path))
    if draw(st.integers(0, 4)) == 0:
        record[draw(NAMES)] = draw(flower_arrays(path))
    if draw(st.integers(0, 4)) == 0:
        record.pop(draw(st.sampled_from(names)), None)
    return record


@st.composite
def metric_records(draw: st.DrawFn) -> MetricRecord:
    metrics: dict[str, Any] = {WEIGHTED_BY: 8, "train-loss": 0.5}
    for name in draw(st.lists(st.sampled_from([WEIGHTED_BY, "train-loss"]), max_size=1)):
        metrics[name] = draw(NUMBERS)
    metrics |= draw(st.dictionaries(NAMES, NUMBERS, max_size=1)) if draw(st.booleans()) else {}
    if draw(st.integers(0, 5)) == 0:
        metrics.pop(draw(st.sampled_from([*metrics])))
    return MetricRecord(metrics)


@st.composite
def contents(draw: st.DrawFn, path: Path) -> RecordDict:
    """The content of a reply to a training message, with momentum beside the arrays or without."""
    content = RecordDict({"arrays": draw(array_records(path, list(SENT)))})
    content["metrics"] = draw(metric_records())
    if draw(st.integers(0, 3)):
        content["fixbn-momentum"] = draw(array_records(path, PARAMETERS))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1]))):
        other = draw(
            st.sampled_from(
                [
                    ConfigRecord({"": "", "list": []}),
                    ConfigRecord({"blob": b"x" * 2_000_000}),
                    MetricRecord({"many": [0.0] * 300_000}),
                    MetricRecord({}),
                    ArrayRecord({}),
                ]
            )
        )
        content[draw(st.sampled_from(["arrays", "metrics", "more", "../x"]))] = other
    if draw(st.integers(0, 9)) == 0:
        content.pop(draw(st.sampled_from([*content])))
    return content
