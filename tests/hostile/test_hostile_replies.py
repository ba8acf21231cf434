"""Malicious replies of the Message API are dropped with a message, or are harmless."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from fixbn_flwr import FixBN
from fixbn_flwr.errors import ReplyError, RoundsFailedError
from fixbn_flwr.method.averaging import Kind, of_kind
from fixbn_flwr.server.reply_checks import check_reply
from tests.support.hostile_records import (
    FUZZ,
    NAMES,
    NUMBERS,
    RANDOM,
    REMEDY,
    SENT,
    WEIGHTED_BY,
    content,
    metric_record,
)

GOOD = (1, 2)
"""The nodes that reply correctly. Node 3 is the malicious one."""

Answer = Callable[[Message], RecordDict]


@pytest.fixture(autouse=True, scope="module")
def task_identity() -> None:
    """Set the identity that Flower reads when it creates a message."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


class Nodes(Grid):
    """A grid whose nodes reply with the given functions."""

    def __init__(self, answers: dict[int, Answer]) -> None:
        self.answers = answers
        self._run = Run.create_empty(1)

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.answers)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(message.metadata.dst_node_id)
            answer = self.answers[message.metadata.dst_node_id]
            replies.append(Message(answer(message), reply_to=message))
        return replies


def good(node: int) -> Answer:
    def answer(message: Message) -> RecordDict:
        metrics = MetricRecord({WEIGHTED_BY: 8 * node, "train-loss": 0.5 * node})
        if message.metadata.message_type == "evaluate":
            return RecordDict({"metrics": metrics})
        arrays = {n: np.asarray(a + a.dtype.type(node)) for n, a in SENT.items()}
        momentum = of_kind(arrays, Kind.PARAMETER)
        return RecordDict(
            {
                "arrays": ArrayRecord({n: Array(a) for n, a in arrays.items()}),
                "metrics": metrics,
                "fixbn-momentum": ArrayRecord({n: Array(a) for n, a in momentum.items()}),
            }
        )

    return answer


def run(bad: Answer | None, *, rounds: int = 1, evaluates: bool = False) -> Result:
    nodes = {node: good(node) for node in GOOD} | ({3: bad} if bad else {})
    strategy = FixBN(
        FedAvg(fraction_evaluate=float(evaluates), weighted_by_key=WEIGHTED_BY),
        freeze_after=1.0,
        momentum="global",
    )
    initial = ArrayRecord({name: Array(array) for name, array in SENT.items()})
    return strategy.start(Nodes(nodes), initial, num_rounds=rounds)


@cache
def result_without_node_3(rounds: int = 1, evaluates: bool = False) -> Result:
    return run(None, rounds=rounds, evaluates=evaluates)


def same_model(one: Result, other: Result) -> bool:
    return {n: a.data for n, a in one.arrays.items()} == {
        n: a.data for n, a in other.arrays.items()
    }


def message_with(content: RecordDict) -> Message:
    return Message(content, dst_node_id=1, message_type="train")


@settings(FUZZ, max_examples=2500)
@given(random=RANDOM, with_momentum=st.booleans())
def test_any_reply_is_read_or_refused(random: Random, with_momentum: bool) -> None:
    refused = ""
    try:
        checked = check_reply(
            content(random), SENT, weighted_by=WEIGHTED_BY, with_momentum=with_momentum
        )
    except ReplyError as error:
        refused = str(error)
    if refused:
        assert re.search(REMEDY, refused), refused
        return
    # An accepted reply can be averaged, whatever its description says.
    update, rest = checked.update, checked.content
    assert 0 < update.weight <= 2**53
    seen = rest.array_records[checked.model_key]
    arrays = {name: array.numpy() for name, array in seen.items()}
    assert arrays.keys() == SENT.keys()
    for name, array in [*arrays.items(), *update.momentum.items()]:
        assert (array.shape, array.dtype) == (SENT[name].shape, SENT[name].dtype)
        assert np.isfinite(array).all()
        assert not name.endswith("_var") or (array >= 0).all()
    for name, described in seen.items():
        assert (described.dtype, described.shape) == (str(SENT[name].dtype), SENT[name].shape)


@settings(FUZZ, max_examples=250)
@given(random=RANDOM)
def test_the_other_replies_are_averaged_as_if_a_bad_reply_were_absent(random: Random) -> None:
    result = run(lambda _: content(random))
    counts = result.train_metrics_clientapp[1]
    if counts["fixbn-dropped"]:
        assert counts["fixbn-clients"] == len(GOOD)
        assert same_model(result, result_without_node_3())
    else:
        assert counts["fixbn-clients"] == 3
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())


@settings(FUZZ, max_examples=250)
@given(random=RANDOM)
def test_a_bad_evaluation_does_not_end_the_run_or_change_the_other_metrics(random: Random) -> None:
    metrics = metric_record(random)
    returned = RecordDict({"metrics": metrics}) if random.random() < 0.8 else content(random)

    def answer(message: Message) -> RecordDict:
        return returned if message.metadata.message_type == "evaluate" else good(3)(message)

    averaged = dict(run(answer, evaluates=True).evaluate_metrics_clientapp[1])
    assert np.isfinite(averaged["train-loss"])
    reported = returned.metric_records.get("metrics", {})
    if reported.keys() != {WEIGHTED_BY, "train-loss"}:
        assert averaged == dict(result_without_node_3(evaluates=True).evaluate_metrics_clientapp[1])


def good_content(**changes: Any) -> RecordDict:
    records = good(3)(message_with(RecordDict()))
    for key, record in changes.items():
        records[key.replace("_", "-")] = record
    return records


BAD: dict[str, tuple[Callable[[], RecordDict], str]] = {
    "an array larger than the one sent": (
        lambda: good_content(
            arrays=ArrayRecord(
                {**good_content()["arrays"], "w": Array(np.zeros((3000, 3), np.float32))}
            )
        ),
        "'w' takes 36,128 bytes and was sent with 24: .* not decoded",
    ),
    "a buffer larger than its parameter": (
        lambda: good_content(
            fixbn_momentum=ArrayRecord(
                {"w": Array(np.zeros(3000)), "scale": Array(np.zeros((), np.float32))}
            )
        ),
        "'w' takes 24,128 bytes and was sent with 24",
    ),
    "a hundred thousand metrics": (
        lambda: good_content(metrics=MetricRecord({str(n): 0.0 for n in range(10**5)})),
        "holds 1,288,890 bytes of metrics",
    ),
    "a metric of a million numbers": (
        lambda: good_content(metrics=MetricRecord({WEIGHTED_BY: 8, "train-loss": [0.0] * 10**6})),
        "holds 8,000,030 bytes",
    ),
    "a text of 100 MB": (
        lambda: good_content(config=ConfigRecord({"text": "x" * 10**8})), "holds 100,000,050 bytes",
    ),
    "a name of 10 MB": (
        lambda: good_content(arrays=ArrayRecord({"x" * 10**7: Array(np.zeros(1))})),
        r"unknown \['xxx.*\.\.\. \(10,000,\d+ characters in all\)$",
    ),
    "a name that is a path": (
        lambda: good_content(
            arrays=ArrayRecord({**good_content()["arrays"], "../../x": Array(np.zeros(1))})
        ),
        r"unknown \['\.\./\.\./x'\]",
    ),
    "a number where other clients report a list": (
        lambda: good_content(metrics=MetricRecord({WEIGHTED_BY: 8, "train-loss": [0.5]})),
        "differ from those of most replies",
    ),
    "a huge number of examples": (
        lambda: good_content(metrics=MetricRecord({WEIGHTED_BY: 1.7e308, "train-loss": 0.5})),
        r"'num-examples' is 1.7e\+308",
    ),
    "a number of examples with thousands of digits": (
        lambda: good_content(metrics=MetricRecord({WEIGHTED_BY: 10**5000, "train-loss": 0.5})),
        "'num-examples' is a whole number of 16610 bits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_the_warning_names_the_client_of_a_bad_reply(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    build, message_pattern = BAD[case]
    returned = build()
    with caplog.at_level(logging.WARNING, "flwr"):
        result = run(lambda _: returned)
    (line,) = [r.getMessage() for r in caplog.records if "reply dropped" in r.getMessage()]
    assert re.search(f"^round 1: reply dropped, client 3: .*{message_pattern}", line, re.DOTALL), (
        line[:3000]
    )
    assert len(line) < 2500
    assert same_model(result, result_without_node_3())
    assert result.train_metrics_clientapp[1]["fixbn-dropped"] == 1


@pytest.mark.parametrize(
    ("metrics", "message_pattern"),
    [
        ({"train-loss": 0.5}, "reply dropped, client 3: .*'num-examples' is None"),
        ({WEIGHTED_BY: 0, "train-loss": 0.5}, "client 3 has no examples"),
        ({WEIGHTED_BY: 8, "train-loss": float("nan")}, "'train-loss' is undefined at 1 of 3"),
        ({WEIGHTED_BY: 8, "train-loss": [0.5, float("inf")]}, "client 3: .* differ from those of"),
        ({WEIGHTED_BY: 8, "accuracy": 0.5}, "reply dropped, client 3: .*differ from those of"),
    ],
)
def test_the_warning_names_the_client_of_a_bad_evaluation(
    metrics: dict[str, Any], message_pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(message: Message) -> RecordDict:
        if message.metadata.message_type == "evaluate":
            return RecordDict({"metrics": MetricRecord(metrics)})
        return good(3)(message)

    with caplog.at_level(logging.WARNING, "flwr"):
        result = run(answer, evaluates=True)
    assert re.search(message_pattern, caplog.text)
    expected = result_without_node_3(evaluates=True).evaluate_metrics_clientapp[1]
    assert dict(result.evaluate_metrics_clientapp[1]) == pytest.approx(dict(expected))


def test_a_run_of_bad_replies_only_stops_with_a_short_error() -> None:
    returned = good_content(arrays=ArrayRecord({"x" * 10**6: Array(np.zeros(1))}))
    nodes = Nodes({1: lambda _: returned, 2: lambda _: returned})
    initial = ArrayRecord({name: Array(array) for name, array in SENT.items()})
    with pytest.raises(RoundsFailedError, match="no client returned") as stopped:
        FixBN(FedAvg(fraction_evaluate=0.0), freeze_after=1.0).start(nodes, initial, 3)
    assert len(str(stopped.value)) < 5000


@settings(FUZZ, max_examples=60)
@given(name=st.sampled_from(NAMES), number=st.sampled_from(NUMBERS))
def test_no_reply_can_choose_a_path(
    name: str, number: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of records and metrics are never used as names of files."""
    here = tmp_path / "one" / "two"  # so that ../../x is still inside tmp_path
    here.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(here)
    folders = [here, here.parent, tmp_path, Path("/etc")]
    before = [sorted(os.listdir(folder)) for folder in folders]
    returned = good_content(metrics=MetricRecord({WEIGHTED_BY: 8, name: number}))
    returned[name] = ConfigRecord({name: name})
    run(lambda _: returned)
    assert [sorted(os.listdir(folder)) for folder in folders] == before
