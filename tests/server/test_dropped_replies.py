"""FixBN around real strategies: invalid replies are not averaged."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, MetricRecord, RecordDict
from torch import nn

from fixbn_flwr import FixBN
from fixbn_flwr.errors import (
    StatisticsMovedError,
)
from fixbn_flwr.testing import FIRST_NODE_ID, SerializingGrid
from tests.support.clients import training_app
from tests.support.small_federation import (
    CLIENTS,
    OnReply,
    batches,
    corrupt,
    fedavg,
    federation,
    network,
    same,
    statistics_of,
)


def _nan(array: np.ndarray) -> np.ndarray:
    array.flat[0] = np.nan
    return array


def _metrics(**metrics: float) -> OnReply:
    def on_reply(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
        if partition == 1:
            content["metrics"] = MetricRecord(
                {key.replace("_", "-"): value for key, value in metrics.items()}
            )

    return on_reply


def _missing(name: str) -> OnReply:
    def on_reply(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
        if partition == 1:
            del content.array_records["arrays"][name]

    return on_reply


def _renamed_record(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
    if partition == 1:
        content["weights"] = content.array_records["arrays"]
        del content["arrays"]


def _unreadable(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
    if partition == 1:
        content.array_records["arrays"]["scale"] = Array("float32", (), "numpy.ndarray", b"junk")


BAD_REPLIES = {
    "NaN": (corrupt("first.weight", _nan), "first.weight"),
    "infinite statistic": (corrupt("norm.running_mean", lambda a: a + np.inf), "running_mean"),
    "negative variance": (corrupt("norm.running_var", lambda a: -a), "below zero"),
    "shape": (corrupt("first.bias", lambda a: a[:-1]), "first.bias"),
    "type": (corrupt("first.bias", lambda a: a.astype(np.int64)), "int64"),
    "missing array": (_missing("norm.running_mean"), "running_mean"),
    "negative examples": (_metrics(num_examples=-3), "num-examples"),
    "weight missing": (_metrics(accuracy=1.0), "num-examples"),
    "weight NaN": (_metrics(num_examples=float("nan")), "num-examples"),
    "other metrics": (_metrics(num_examples=8, extra=1.0), "names"),
    "other record": (_renamed_record, "names"),
    "unreadable": (_unreadable, "read"),
}


@pytest.mark.parametrize("case", BAD_REPLIES)
def test_a_bad_reply_is_dropped_logged_and_counted(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The result equals that of a federation in which this client never replies."""
    on_reply, reason = BAD_REPLIES[case]
    result, of_round = federation(FixBN(fedavg(), freeze_after=1), on_reply=on_reply, rounds=2)
    assert [result.train_metrics_clientapp[t]["fixbn-clients"] for t in (1, 2)] == [3, 3]
    assert [result.train_metrics_clientapp[t]["fixbn-dropped"] for t in (1, 2)] == [1, 1]
    dropped = [r.getMessage() for r in caplog.records if "reply dropped" in r.getMessage()]
    assert len(dropped) == 2
    assert all(f"client {FIRST_NODE_ID + 1}" in line and reason in line for line in dropped)
    silent = SerializingGrid(
        training_app(network, batches),
        CLIENTS,
        lost=lambda message: message.metadata.dst_node_id == FIRST_NODE_ID + 1,
    )
    _, of_silent = federation(FixBN(fedavg(), freeze_after=1), grid=silent, rounds=2)
    assert same(of_round[2], of_silent[2])


def test_global_momentum_is_checked_like_the_arrays(caplog: pytest.LogCaptureFixture) -> None:
    def on_reply(partition: int, server_round: int, _: nn.Module, content: RecordDict) -> None:
        momentum = content.array_records["fixbn-momentum"]
        if partition == 0:
            momentum["first.bias"] = Array(np.full(5, np.nan, np.float32))
        elif partition == 1:
            momentum["norm.running_mean"] = Array(np.zeros(5, np.float32))
        elif partition == 2:
            del content["fixbn-momentum"]

    strategy = FixBN(fedavg(), freeze_after=1, momentum="global")
    result, _ = federation(strategy, on_reply=on_reply, rounds=1)
    assert result.train_metrics_clientapp[1]["fixbn-clients"] == 1
    for reason in ("first.bias (momentum)", "'norm.running_mean', float32", "**local.records"):
        assert reason in caplog.text


def test_other_names_of_momentum_do_not_end_the_run() -> None:
    def on_reply(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
        if partition == 2:
            del content.array_records["fixbn-momentum"]["scale"]

    strategy = FixBN(fedavg(), freeze_after=1, momentum="global")
    result, _ = federation(strategy, on_reply=on_reply)
    assert [record["fixbn-dropped"] for record in result.train_metrics_clientapp.values()] == [
        1
    ] * 4


def test_a_thawed_client_causes_a_warning_and_does_not_change_the_statistics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    thaw = corrupt("norm.running_mean", lambda a: a + 1)
    _, of_round = federation(FixBN(fedavg(), freeze_after=1), on_reply=thaw, rounds=2)
    assert same(statistics_of(of_round[2]), statistics_of(of_round[1]))
    thawed = [r for r in caplog.records if "it did not freeze them" in r.getMessage()]
    assert len(thawed) == 1  # no warning in exploration
    assert f"client {FIRST_NODE_ID + 1} returned 1 of 2" in thawed[0].getMessage()


def test_a_thawed_client_ends_a_strict_run() -> None:
    thaw = corrupt("norm.running_mean", lambda a: a + 1)
    with pytest.raises(StatisticsMovedError, match=f"client {FIRST_NODE_ID + 1}"):
        federation(FixBN(fedavg(), freeze_after=1, strict=True), on_reply=thaw)
    federation(FixBN(fedavg(), freeze_after=1, strict=True))  # no client thaws: no error


class Meddling(SerializingGrid):
    """A grid that adds invalid replies in the first round."""

    def __init__(self, extra: str) -> None:
        super().__init__(training_app(network, batches), CLIENTS)
        self.extra, self.first = extra, True

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if not self.first:
            return replies
        self.first = False
        (original,) = [r for r in replies if r.metadata.src_node_id == FIRST_NODE_ID + 1]
        duplicate = copy.deepcopy(original)
        for name in duplicate.content.array_records["arrays"]:
            array = duplicate.content.array_records["arrays"][name].numpy()
            duplicate.content.array_records["arrays"][name] = Array(
                np.asarray(array + 1, array.dtype)
            )
        if self.extra == "another round":
            duplicate.metadata.__dict__["_reply_to_message_id"] = "message-999"
            return [*(reply for reply in replies if reply is not original), duplicate]
        if self.extra == "another node":
            duplicate.metadata.__dict__["_src_node_id"] = 77
        return [*replies, duplicate]


@pytest.mark.parametrize(
    ("extra", "node", "reason", "lost"),
    [
        ("twice", FIRST_NODE_ID + 1, "it replied twice in this round", None),
        ("another node", 77, "a client that was not sampled", None),
        ("another round", FIRST_NODE_ID + 1, "it answers message 'message-999'", 1),
    ],
)
def test_an_unexpected_reply_is_dropped_and_logged(
    extra: str, node: int, reason: str, lost: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = FixBN(fedavg(), freeze_after=1)
    result, of_round = federation(strategy, grid=Meddling(extra), rounds=1)
    assert f"reply dropped, client {node}: " in caplog.text
    assert reason in caplog.text
    expected = SerializingGrid(
        training_app(network, batches),
        CLIENTS,
        lost=lambda m: lost is not None and m.metadata.dst_node_id == FIRST_NODE_ID + lost,
    )
    assert same(
        of_round[1], federation(FixBN(fedavg(), freeze_after=1), grid=expected, rounds=1)[1][1]
    )
    assert result.train_metrics_clientapp[1]["fixbn-clients"] == CLIENTS - (lost is not None)
