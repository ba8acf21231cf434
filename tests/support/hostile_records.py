"""Contents of malicious replies, drawn from a random generator.

Hypothesis chooses only the generators' seeds. If it drew every byte, it would take ten times as
long, and ten thousand cases must run within a minute.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZ = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
RANDOM = st.integers(0, 2**64 - 1).map(Random)

SENT: dict[str, np.ndarray[Any, Any]] = {
    "w": np.float32([[1, 2, 3], [4, 5, 6]]),
    "n.running_mean": np.float32([0, 1]),
    "n.running_var": np.float32([1, 2]),
    "n.num_batches_tracked": np.asarray(np.int64(3)),
    "scale": np.asarray(np.float32(1)),
}
PARAMETERS = ["w", "scale"]
WEIGHTED_BY = "num-examples"

REMEDY = (
    r"[Rr]eturn |reply with |[Gg]ive |add \*\*|[Uu]se |[Ll]et all |must build the same model|helps"
    r"|left out of the average|below zero\.$|use different versions"
)
"""Every ReplyError states a remedy in one of these phrases."""

NAMES = [
    *SENT, "../../x", "/etc/passwd", "", "\0", "fixbn-momentum", "a" * 5000, "w.running_var",
    "\u202e",
]  # fmt: skip
NUMBERS: list[Any] = [
    0, -1, 1, 2**53 + 1, 2**63, -(2**63), 10**400, 10**5000, 0.0, 1e308, 5e-324, -1.5, math.nan,
    math.inf, [], [1, 2], [0.5], [math.nan], [10**400],
]  # fmt: skip
_DESCRIPTIONS = [
    "'<f4'", "'>f4'", "'<f8'", "'|O'", "'<U7'", "'|V0'", "'|S0'", "'<M8[s]'", "'|b1'", "'<i8'",
    "[('a', '<f4')]", "[('a', '|O')]", "('<f4', (3,))", "'f4,f4'", "'<c8'", "1", "None", "'x'",
]  # fmt: skip


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.path), "w")


def npy(array: Any, *, pickles: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickles)
    return file.getvalue()


CANARY = Path("/tmp/fixbn-flwr-a-client-ran-code-here")
_archive = io.BytesIO()
np.savez(_archive, np.zeros(3))
BOMBS = [
    npy(np.array([Bomb(CANARY)], dtype=object), pickles=True),
    pickle.dumps(Bomb(CANARY)),
    _archive.getvalue(),
]
"""Bytes that numpy would unpickle, or open as an archive, if it were allowed to."""

VALID = [npy(array) for array in SENT.values()]
_OF_W = [npy(np.full((2, 3), value, np.float32)) for value in (np.nan, np.inf, -1.0, 3e38)]
_LARGE = npy(np.zeros(5000, np.float32))


def damaged(random: Random, good: bytes) -> bytes:
    """Return valid bytes with parts overwritten, inserted, deleted, cut off or repeated."""
    data = bytearray(good)
    for _ in range(random.randint(1, 3)):
        start = random.randint(0, len(data))
        end = min(len(data), start + random.randint(0, 9))
        match random.randrange(5):
            case 0:
                data[start:end] = random.randbytes(end - start)
            case 1:
                data[start:start] = random.randbytes(random.randint(0, 9))
            case 2:
                del data[start:end]
            case 3:
                del data[start:]
            case _:
                data[end:end] = data[start:end]
    return bytes(data)


def header(random: Random) -> bytes:
    """Return an npy file with an arbitrary header and little data."""
    sizes = [0, 1, 2, 3, 6, -1, 2**31, 2**62, 10**30]
    shape = tuple(random.choices(sizes, k=random.randint(0, 4)))
    fields = (
        f"{{'descr': {random.choice(_DESCRIPTIONS)}, 'fortran_order': "
        f"{random.choice(['True', 'False', '1', '[]'])}, 'shape': {shape}, }}"
    )
    text = (fields + random.choice(["\n", "", " " * 60 + "\n", "(" * 300])).encode()
    version = random.choice([b"\x01\x00"] * 4 + [b"\x02\x00", b"\x03\x00", b"\x01\x01"])
    length = random.choice([len(text)] * 4 + [0, 65535])
    return (
        b"\x93NUMPY"
        + version
        + length.to_bytes(2 if version == b"\x01\x00" else 4, "little")
        + text
        + random.randbytes(random.randint(0, 40))
    )


def payload(random: Random) -> bytes:
    """Return the bytes of one array: random, valid, damaged, of a wrong type, or a pickle."""
    kinds = [
        lambda: random.randbytes(random.randint(0, 200)),
        lambda: random.choice(VALID),
        lambda: random.choice(_OF_W),
        lambda: damaged(random, random.choice(VALID)),
        lambda: header(random),
        lambda: random.choice(BOMBS),
        lambda: _LARGE,
    ]
    return random.choice(kinds)()


def array(random: Random) -> Array:
    """Return an array of a message, whose description may contradict its bytes."""
    return Array(
        random.choice(["float32", "", "object", "float64", "../x"]),
        tuple(random.choices([2, 3, 0, -1, 2**62], k=random.randint(0, 3))),
        random.choice(["numpy.ndarray"] * 5 + ["", "pickle", "torch"]),
        payload(random),
    )


def array_record(random: Random, names: Sequence[str]) -> ArrayRecord:
    """Return arrays of these names; some may be damaged, missing or added."""
    record = ArrayRecord({name: Array(SENT[name]) for name in names})
    for name in random.choices(list(names), k=random.choice([0, 0, 1, 2])):
        record[name] = array(random)
    if random.random() < 0.1:
        record[random.choice(NAMES)] = array(random)
    if random.random() < 0.1:
        record.pop(random.choice(list(names)), None)
    return record


def metric_record(random: Random) -> MetricRecord:
    """Return metrics; some may be invalid, missing or added."""
    metrics: dict[str, Any] = {WEIGHTED_BY: 8, "train-loss": 0.5}
    if random.random() < 0.3:
        metrics[random.choice(list(metrics))] = random.choice(NUMBERS)
    if random.random() < 0.2:
        metrics[random.choice(NAMES)] = random.choice(NUMBERS)
    if random.random() < 0.1:
        metrics.pop(random.choice(list(metrics)))
    return MetricRecord(metrics)


_OTHERS = [
    ConfigRecord({"": "", "list": []}),
    ConfigRecord({"blob": b"x" * 2_000_000}),
    ConfigRecord({"list": ["x" * 2_000_000]}),
    MetricRecord({"many": [0.0] * 200_000}),
    MetricRecord({}),
    ArrayRecord({}),
]


def content(random: Random) -> RecordDict:
    """Return the content of a reply to a training message, with or without momentum."""
    records = RecordDict({"arrays": array_record(random, list(SENT))})
    records["metrics"] = metric_record(random)
    if random.random() < 0.8:
        records["fixbn-momentum"] = array_record(random, PARAMETERS)
    if random.random() < 0.2:
        name = random.choice(["arrays", "metrics", "more", "../x", "fixbn-layout:arrays"])
        records[name] = random.choice(_OTHERS)
    if random.random() < 0.1:
        records.pop(random.choice(list(records)))
    return records
