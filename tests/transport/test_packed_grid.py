"""Packing preserves all bits of arrays and runs, and damaged packed arrays are dropped."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.superlink.grid import HttpGrid

from fixbn_flwr.app import client_app
from fixbn_flwr.array_records import record_of
from fixbn_flwr.errors import ReplyError
from fixbn_flwr.testing import SerializingGrid
from fixbn_flwr.transport import packed_grid
from fixbn_flwr.transport.packed_grid import PackedGrid, flat_arrays_mod, flat_in_deployment
from fixbn_flwr.transport.packing import LAYOUT, Packer, is_packed, unpack
from tests.support.whole_app import SMALL, rounds_of, run_app, serve
from tests.support.wire import Wire

DTYPES = ("bool", "int8", "uint8", "int64", "float16", "<f4", ">f4", "float64", "complex64")
SHAPES = ((), (1,), (7,), (0,), (3, 0, 2), (2, 3), (1, 5), (2, 3, 4, 5))


def random_arrays(seed: int) -> dict[str, npt.NDArray[Any]]:
    """Return arrays of random bits (NaN, -0.0, subnormal), dtype, shape and memory order."""
    random = np.random.default_rng(seed)
    arrays = {}
    for number in range(int(random.integers(1, 12))):
        dtype = np.dtype(random.choice(DTYPES))
        shape = SHAPES[random.integers(len(SHAPES))]
        count = int(np.prod(shape))
        values = np.frombuffer(random.bytes(count * dtype.itemsize), dtype)
        if dtype.kind == "b":
            values = random.integers(0, 2, count).astype("bool")
        order = random.choice(["C", "F"])
        arrays[f"layer.{number}/ü"] = np.array(values.reshape(shape), order=order)
    return arrays


def fields(record: ArrayRecord) -> list[tuple[str, str, tuple[int, ...], str, bytes]]:
    return [(name, a.dtype, tuple(a.shape), a.stype, a.data) for name, a in record.items()]


@pytest.mark.parametrize("seed", range(200))
def test_unpacked_arrays_keep_their_bytes_names_and_order(seed: int) -> None:
    records = {"arrays": record_of(random_arrays(seed)), "other": record_of(random_arrays(-~seed))}
    config = ConfigRecord({"server-round": 3})
    content = RecordDict({**records, "config": config})
    packed = Packer().pack(content)
    assert is_packed(packed)
    unpacked = unpack(packed)
    assert list(unpacked) == list(content)
    assert not is_packed(unpacked)
    for key, record in records.items():
        dtypes = {array.numpy().dtype for array in record.values()}
        assert len(packed.array_records[key]) == len(dtypes)
        assert fields(unpacked.array_records[key]) == fields(record)
    assert unpacked["config"] == config


def test_a_model_becomes_one_flat_array_per_dtype_and_a_shared_record_is_packed_once() -> None:
    record = record_of(
        {
            "weight": np.arange(6, dtype="float32").reshape(2, 3),
            "running_mean": np.ones(3, "float32"),
            "num_batches_tracked": np.asarray(7),
        }
    )
    packer = Packer()
    first, second = (packer.pack(RecordDict({"arrays": record})) for _ in range(2))
    flat = first.array_records["arrays"]
    assert [(a.dtype, a.shape) for a in flat.values()] == [("float32", (9,)), ("int64", (1,))]
    assert second["arrays"] is first["arrays"]


def test_records_of_the_older_generation_are_packed_too() -> None:
    """Their arrays have neither type nor shape, only numpy's bytes."""
    saved = [Array(np.full(shape, 2.5, "float32")).data for shape in ((2, 3), ())]
    sent = ArrayRecord(
        {str(i): Array("", (), "numpy.ndarray", data) for i, data in enumerate(saved)}
    )
    packed = Packer().pack(RecordDict({"fitins.parameters": sent}))
    assert len(packed.array_records["fitins.parameters"]) == 1
    unpacked = unpack(packed).array_records["fitins.parameters"]
    assert [(name, array.data) for name, array in unpacked.items()] == list(
        zip("01", saved, strict=True)
    )


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (2,), "somebody.else", b"\x93NUMPY\x01\x00"),
        Array("float32", (2,), "numpy.ndarray", b"no file of numpy's"),
        Array(np.array(["a", "b"])),
    ],
)
def test_arrays_that_numpy_cannot_read_as_numbers_are_not_packed(array: Array) -> None:
    content = RecordDict({"arrays": ArrayRecord({"a": array, "b": Array(np.ones(2))})})
    assert Packer().pack(content) == content
    assert not is_packed(content)


def damaged(**changes: Any) -> RecordDict:
    """Return a packed record of x [2, 3] and y [4], with changed entries in its layout."""
    arrays = {"x": np.ones((2, 3), "float32"), "y": np.ones(4, "float32")}
    content = Packer().pack(RecordDict({"arrays": record_of(arrays)}))
    flat = changes.pop("flat", None)
    if flat is not None:
        content["arrays"] = flat
    layout = dict(content.config_records[LAYOUT + "arrays"]) | changes
    content[LAYOUT + "arrays"] = ConfigRecord({k: v for k, v in layout.items() if v is not None})
    return content


HUGE = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }"


def wrong_header(count: int) -> ArrayRecord:
    """Return a flat array whose header claims more values than it has."""
    header = (HUGE % count).ljust(127) + b"\n"
    array = Array("float32", (count,), "numpy.ndarray", header + bytes(40))
    return ArrayRecord({"fixbn-packed:<f4": array})


DAMAGES = {
    "no names": (damaged(names=None), "without a list of names"),
    "numbers for names": (damaged(names=[1, 2]), "without a list of names"),
    "a missing shape": (damaged(shapes=["2,3"]), "2 names and 1 shapes"),
    "a name twice": (damaged(names=["x", "x"]), "twice"),
    "too large": (damaged(shapes=["2,3", "5"]), r"'y' of shape \(5,\), past the end of 10 values"),
    "far too large": (damaged(shapes=["2,3", "9" * 400]), "past the end"),
    "too small": (damaged(shapes=["2,3", "3"]), "10 values of <f4, but a layout of 9"),
    "an empty array with a huge size": (damaged(shapes=["0," + "9" * 30, "10"]), "'x' of shape"),
    "negative": (damaged(shapes=["2,3", "-4"]), "'y' of shape '-4'"),
    "an extra comma": (damaged(shapes=["2,3", "4,"]), "'y' of shape '4,'"),
    "65 dimensions": (damaged(shapes=["2,3", "4" + ",1" * 70]), "'y' of shape"),
    "unknown dtype": (damaged(dtypes=["<f4", "<f8"]), "dtype '<f8'"),
    "unknown order": (damaged(orders=["C", "K"]), "order 'K'"),
    "no array": (damaged(flat=ArrayRecord()), "of dtype '<f4'"),
    "not a record": (damaged(flat=ConfigRecord()), "a layout without arrays"),
    "not flat": (
        damaged(flat=ArrayRecord({"fixbn-packed:<f4": Array(np.ones((2, 5), "float32"))})),
        r"shape \(2, 5\)",
    ),
    "another dtype": (
        damaged(flat=ArrayRecord({"fixbn-packed:<f4": Array(np.ones(10))})), "of float64"
    ),
    "not a numpy file": (
        damaged(flat=ArrayRecord({"fixbn-packed:<f4": Array("", (), "numpy.ndarray", b"PK")})),
        "an unreadable flat array",
    ),
    "a wrong header": (damaged(flat=wrong_header(10**15)), "an unreadable flat array"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_is_refused_quickly(content: RecordDict, reason: str) -> None:
    started = time.monotonic()
    with pytest.raises(ReplyError, match=f"its packed record 'arrays' holds .*{reason}"):
        unpack(content)
    assert time.monotonic() - started < 1


def test_a_record_of_a_million_empty_arrays_is_refused() -> None:
    many = 1_000_000
    with pytest.raises(ReplyError, match="a layout of 1000000 names"):
        unpack(
            damaged(
                names=["x"] * many, dtypes=["<f4"] * many, shapes=["0"] * many, orders=["C"] * many
            )
        )


@pytest.mark.parametrize("momentum", ["local", "global"])
def test_a_packed_run_of_the_app_has_the_same_bits(
    tmp_path: Path, momentum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_grid, "QUICKEST", 0.001)
    plain = run_app(tmp_path / "plain", 2, {"momentum": momentum})
    config = SMALL | {"momentum": momentum, "output-dir": str(tmp_path / "packed")}
    grid = Wire(client_app.app, 2, run_config=config)
    serve(PackedGrid(grid), config)  # type: ignore[arg-type]
    (packed,) = (tmp_path / "packed").iterdir()
    model = "final.safetensors"
    assert (packed / model).read_bytes() == (plain / model).read_bytes()
    for message in (grid.sent[-1], grid.received[-1]):
        assert len(message.content.array_records["arrays"]) == 2  # float32 and int64
        assert set(message.content.array_records) == {
            "arrays", *(["fixbn-momentum"] if momentum == "global" else [])
        }  # fmt: skip
    same = ("train_loss", "test_loss", "bytes_sent", "bytes_received")
    assert [[line[key] for key in same] for line in rounds_of(packed)] == [
        [line[key] for key in same] for line in rounds_of(plain)
    ]


class Scripted(Grid):
    """Returns the given replies after ``after`` empty pulls."""

    def __init__(self, replies: list[Message], after: int = 0) -> None:
        self.replies, self.pulls, self.after = replies, 0, after

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.pushed = list(messages)
        return [f"message-{number}" for number, _ in enumerate(self.pushed)]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.pulls += 1
        return self.replies if self.pulls > self.after else []

    create_message = set_run = run = get_node_ids = send_and_receive = None  # type: ignore[assignment]


def message_to(node_id: int) -> Message:
    SerializingGrid(client_app.app, 1)  # sets this process's identity in Flower
    content = RecordDict({"arrays": record_of({"w": np.ones(3), "n": np.asarray(1)})})
    message = Message(content, dst_node_id=node_id, message_type="train")
    message.metadata.__dict__["_message_id"] = f"message-{node_id}"
    return message


def test_a_damaged_reply_becomes_an_error_of_its_client_and_the_others_pass() -> None:
    messages = [message_to(node_id) for node_id in range(4)]
    plain = RecordDict({"metrics": MetricRecord({"loss": 0.5})})
    contents = [Packer().pack(messages[0].content), damaged(shapes=["2,3", "5"]), plain.copy()]
    for content in contents:
        content["fixbn-unpacked"] = ConfigRecord()
    replies = [
        Message(c, reply_to=message) for c, message in zip(contents, messages[:3], strict=True)
    ]
    replies.append(Message(Error(2, "out of memory"), reply_to=messages[3]))
    good, bad, unpacked, failed = PackedGrid(Scripted(replies)).send_and_receive(messages)
    assert fields(good.content.array_records["arrays"]) == fields(
        messages[0].content.array_records["arrays"]
    )
    assert bad.has_error()
    assert bad.metadata.src_node_id == 1
    assert "its packed record 'arrays' holds array 'y'" in bad.error.reason
    assert unpacked.content == plain
    assert failed.error.reason.endswith(" out of memory")


def test_packing_does_not_change_the_senders_messages() -> None:
    message = message_to(0)
    before = fields(message.content.array_records["arrays"])
    grid = Scripted([Message(RecordDict(), reply_to=message)])
    PackedGrid(grid).send_and_receive([message])
    assert fields(message.content.array_records["arrays"]) == before
    assert is_packed(grid.pushed[0].content)


def test_replies_are_pulled_quickly_and_not_longer_than_the_timeout() -> None:
    started = time.monotonic()
    message = message_to(0)
    grid = Scripted([Message(RecordDict(), reply_to=message)], after=3)
    assert len(PackedGrid(grid).send_and_receive([message], timeout=60)) == 1
    assert time.monotonic() - started < 3  # Flower's pause between two pulls
    assert PackedGrid(Scripted([], after=10**9)).send_and_receive([message], timeout=0.2) == []
    assert PackedGrid(Scripted([])).send_and_receive([]) == []


def test_only_the_grid_of_a_deployment_is_wrapped() -> None:
    simulated = SerializingGrid(client_app.app, 1)
    assert flat_in_deployment(simulated) is simulated
    assert isinstance(flat_in_deployment(HttpGrid(token="any")), PackedGrid)


def test_the_mod_does_not_change_unpacked_messages_or_errors() -> None:
    message = message_to(0)
    context = Context(1, 5, {}, RecordDict(), {})
    replies = [
        Message(message.content, reply_to=message),
        Message(Error(2, "no"), reply_to=message),
    ]
    assert flat_arrays_mod(message, context, lambda *_: replies[0]) is replies[0]
    assert not is_packed(replies[0].content)
    message.content = Packer().pack(message.content)
    assert flat_arrays_mod(message, context, lambda *_: replies[1]).has_error()


def test_a_damaged_message_never_reaches_the_client() -> None:
    message = message_to(0)
    message.content = damaged(orders=["C", "K"])
    with pytest.raises(ReplyError, match="order 'K'"):
        flat_arrays_mod(
            message, Context(1, 5, {}, RecordDict(), {}), lambda *_: pytest.fail("called")
        )
