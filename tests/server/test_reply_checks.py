from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.server.reply_checks import check_reply, check_update, form_of
from fixbn_flwr.server.reply_limits import check_sizes

SENT: dict[str, np.ndarray[Any, Any]] = {
    "w": np.float32([1, 2]),
    "n.running_mean": np.float32([0]),
    "n.running_var": np.float32([1]),
    "n.num_batches_tracked": np.asarray(np.int64(3)),
    "scale": np.asarray(np.float32(1)),
    "index": np.arange(3),
}


def record(**changes: Any) -> ArrayRecord:
    arrays = {**SENT, **changes}
    return ArrayRecord({name: Array(np.asarray(a)) for name, a in arrays.items() if a is not None})


def content(**records: Any) -> RecordDict:
    contents: dict[str, Any] = {
        "arrays": record(),
        "metrics": MetricRecord({"num-examples": 7, "loss": 0.5}),
        **records,
    }
    return RecordDict({key: value for key, value in contents.items() if value is not None})


def read(reply: RecordDict, *, with_momentum: bool = False) -> Any:
    checked = check_reply(reply, SENT, weighted_by="num-examples", with_momentum=with_momentum)
    return checked.update, checked.content


def test_a_reply_is_split_into_update_and_content() -> None:
    sent = content(extra=ConfigRecord({"note": "fine"}))
    update, rest = read(sent)
    assert update.weight == 7
    assert update.momentum == {}
    assert list(update.arrays) == [
        "n.running_mean", "n.running_var", "n.num_batches_tracked", "index",
    ]  # fmt: skip
    assert list(rest) == ["arrays", "metrics", "extra"]
    assert list(rest["arrays"]) == list(SENT)
    assert rest["metrics"] == sent["metrics"]
    assert rest["extra"] == sent["extra"]


def test_the_arrays_record_keeps_its_key() -> None:
    _, rest = read(content(arrays=None, weights=record()))
    assert list(rest.array_records) == ["weights"]


def test_momentum_is_removed_from_the_content() -> None:
    momentum = ArrayRecord({"w": Array(np.float32([3, 4]))})
    update, rest = read(content(**{"fixbn-momentum": momentum}), with_momentum=True)
    assert update.momentum["w"].tolist() == [3, 4]
    assert list(rest.array_records) == ["arrays"]


def test_unrequested_momentum_is_dropped() -> None:
    momentum = ArrayRecord({"what": Array(np.float32([np.nan]))})
    update, rest = read(content(**{"fixbn-momentum": momentum}))
    assert update.momentum == {}
    assert list(rest.array_records) == ["arrays"]


def momentum(**buffers: Any) -> dict[str, Any]:
    return {"fixbn-momentum": ArrayRecord({n: Array(np.asarray(b)) for n, b in buffers.items()})}


BAD: dict[str, tuple[Callable[[], RecordDict], str]] = {
    "NaN": (lambda: content(arrays=record(w=np.float32([np.nan, 1]))), "'w' holds NaN"),
    "infinity": (lambda: content(arrays=record(w=np.float32([-np.inf, 1]))), "'w' holds NaN or"),
    "shape": (lambda: content(arrays=record(w=np.float32([1]))), r"\(1,\).*\(2,\)"),
    "type": (lambda: content(arrays=record(w=np.int32([1, 2]))), "type int32 .* float32"),
    "overflow": (lambda: content(arrays=record(w=np.float64([1, 1e300]))), "'w' holds NaN or inf"),
    "missing": (lambda: content(arrays=record(w=None)), r"missing \['w'\]"),
    "unknown": (lambda: content(arrays=record(v=1.0)), r"unknown \['v'\]"),
    "variance": (lambda: content(arrays=record(**{"n.running_var": np.float32([-1])})), "below"),
    "no arrays": (lambda: content(arrays=None), "0 ArrayRecords"),
    "no metrics": (lambda: content(metrics=None), "0 MetricRecords"),
    "junk": (
        lambda: content(
            arrays=ArrayRecord({**record(), "w": Array("float32", (2,), "numpy.ndarray", b"?")})
        ),
        "cannot be read",
    ),
    "empty": (
        lambda: content(
            arrays=ArrayRecord({**record(), "w": Array("float32", (2,), "numpy.ndarray", b"")})
        ),
        "cannot be read",
    ),
    "no momentum": (content, "no 'fixbn-momentum'"),
    "momentum's shape": (lambda: content(**momentum(w=np.float32([1]))), "fits no parameter"),
    "momentum's name": (lambda: content(**momentum(v=np.float32([1]))), "fits no parameter"),
    "momentum's type": (lambda: content(**momentum(w=np.int64([1, 2]))), "fits no parameter"),
    "momentum of a statistic": (
        lambda: content(**momentum(**{"n.running_mean": np.float32([1])})),
        "fits no parameter",
    ),
    "momentum NaN": (lambda: content(**momentum(w=np.float32([1, np.nan]))), r"\(momentum\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_reply_is_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(ReplyError, match=message):
        read(make(), with_momentum="momentum" in case)


def test_a_reply_is_sorted_into_the_order_of_the_message() -> None:
    """Defending strategies match arrays by position, and safetensors keeps no order."""
    sent = {name: np.float32([place]) for place, name in enumerate("abc")}
    sent |= {f"n.running_{kind}": np.float32([1]) for kind in ("mean", "var")}
    returned = {name: sent[name] for name in reversed(sent)}
    momentum = {name: sent[name] for name in "cab"}
    update = check_update(returned, momentum, 1, "num-examples", sent, {}, {})
    assert list(update.arrays) == ["n.running_mean", "n.running_var"]
    assert list(update.momentum) == ["a", "b", "c"]


def test_a_client_may_return_an_infinity_that_it_received() -> None:
    """The mask of an attention layer holds infinity, for example."""
    sent = {"mask": np.float32([0, -np.inf])}
    check_update(sent, None, 1, "num-examples", sent, {}, {})
    with pytest.raises(ReplyError, match="'mask' holds NaN or infinity"):
        check_update({"mask": np.float32([np.inf, 0])}, None, 1, "num-examples", sent, {}, {})


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), [1, 2]])
def test_invalid_weights_are_refused(weight: Any) -> None:
    with pytest.raises(ReplyError, match="num-examples"):
        read(content(metrics=MetricRecord({"num-examples": weight})))


def test_the_error_names_a_missing_weight() -> None:
    with pytest.raises(ReplyError, match="'num-examples' is None"):
        read(content(metrics=MetricRecord({"examples": 3})))


def test_complex_arrays_may_be_as_large_as_those_that_were_sent() -> None:
    sent: dict[str, Any] = {"w": np.full(200, 1j, np.complex128)}
    check_sizes({"w": len(Array(sent["w"]).data)}, sent)
    with pytest.raises(ReplyError, match="was sent with 3,200"):
        check_sizes({"w": 2 * sent["w"].nbytes}, sent)


def test_the_form_of_a_reply_depends_only_on_its_names_and_types() -> None:
    form = form_of(content(), {})
    assert form == form_of(content(metrics=MetricRecord({"loss": 9.0, "num-examples": 1})), {})
    assert form != form_of(content(metrics=MetricRecord({"num-examples": 1})), {})
    assert form != form_of(content(metrics=None, other=MetricRecord({"num-examples": 1})), {})
    assert form != form_of(content(arrays=None, weights=record()), {})
    assert form != form_of(content(), {"w": np.zeros(2)})
