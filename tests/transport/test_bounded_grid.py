"""Replies from the SuperLink: Flower's own objects come whole, made-up ones name their client.

What Flower's SuperLink answers is answered here from memory, with Flower's protocol buffers; the
bound is seen at work between real processes in tests/deploy/test_faults.py.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.superlink.grid import HttpGrid

from fixbn_flwr.array_records import record_of
from fixbn_flwr.transport.bounded_grid import REPLY_MARGIN, BoundedGrid
from tests.support.uploads import SuperLink, asked, grid_of, reply_of


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def grid(superlink: SuperLink) -> BoundedGrid:
    return grid_of(superlink)


def test_replies_come_whole_in_their_order_and_are_confirmed(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    for client in (5, 6):
        superlink.upload(reply_of(client, loss=client))
    envelopes = superlink.envelopes
    replies = list(grid.pull_messages(["message-5", "message-6"]))
    for client, reply, envelope in zip((5, 6), replies, envelopes, strict=True):
        assert reply.content == reply_of(client, loss=client).content
        assert reply.metadata.src_node_id == client
        assert reply.metadata.reply_to_message_id == f"message-{client}"
        assert reply.metadata.message_id == envelope.metadata.message_id
    assert superlink.confirmed == [reply.metadata.message_id for reply in replies]


def test_what_is_on_its_way_is_taken_later_and_keeps_no_other_waiting(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    both = ["message-5", "message-6"]
    superlink.not_yet[superlink.upload(reply_of(5))[-1]] = 2
    superlink.upload(reply_of(6))
    (other,) = grid.pull_messages(both)
    assert other.content == reply_of(6).content
    assert list(grid.pull_messages(["message-5"])) == []
    assert list(grid.pull_messages(["message-7"])) == []
    pulled = superlink.pulled
    (late,) = grid.pull_messages(["message-5"])
    assert late.content == reply_of(5).content
    assert superlink.pulled - pulled < len(reply_of(5).deflate()) + 300  # only what was missing
    assert len(superlink.confirmed) == 2


def test_of_a_reply_that_came_too_late_nothing_is_held(
    superlink: SuperLink, grid: BoundedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink.not_yet[superlink.upload(reply_of(5))[-1]] = 1
    assert list(grid.pull_messages(["message-5"])) == []
    (arriving,) = grid._incoming
    assert arriving.contents
    monkeypatch.setattr(HttpGrid, "push_messages", lambda _, messages: ["message-6"])
    grid.push_messages([asked(6)])
    assert not arriving.contents
    (late,) = grid.pull_messages(["message-5"])  # whoever asks for it still gets it
    assert late.content == reply_of(5).content


def a_bomb(reply: Message) -> bytes:
    return b"ArrayRecord,,5\x00wrong"


def nothing_of_flowers(reply: Message) -> bytes:
    return b"\x80\x04cos\nsystem\n"


def another_kind(reply: Message) -> bytes:
    return MetricRecord({"loss": 0.5}).deflate()


def anothers(reply: Message) -> bytes:
    other = Message(reply.content, reply_to=asked(6))
    return Message(other.content, reply_to=asked(6)).deflate()


@pytest.mark.parametrize(
    ("made_up", "reason"),
    [
        (a_bomb, "its reply is not a Flower message"),
        (nothing_of_flowers, "its reply is not a Flower message"),
        (another_kind, "its reply is not a message but a MetricRecord"),
        (anothers, "its reply is not a Flower message"),  # whose objects are not in its tree
    ],
)
def test_a_made_up_reply_is_an_error_of_its_client_and_the_others_pass(
    superlink: SuperLink,
    grid: BoundedGrid,
    made_up: Callable[[Message], bytes],
    reason: str,
) -> None:
    superlink.make_up(reply_of(5), made_up(reply_of(5)))
    superlink.upload(reply_of(7))
    bad, good = grid.pull_messages(["message-5", "message-7"])
    assert bad.metadata.src_node_id == 5
    assert bad.metadata.reply_to_message_id == "message-5"
    assert bad.error.reason.startswith(reason)
    assert good.content == reply_of(7).content
    assert len(superlink.confirmed) == 2


def holding(content: object) -> Message:
    """A reply that says that it holds records."""
    reply = reply_of(5)
    reply.__dict__["_content"] = content
    return reply


def test_a_reply_of_something_else_than_records_is_refused(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    within = {"w": Array(np.arange(3.0))}
    of_arrays, of_metrics = RecordDict(), ArrayRecord()
    of_arrays.__dict__["_data"]["arrays"] = within["w"]  # past Flower's own checks
    of_metrics.__dict__["_data"]["w"] = MetricRecord({"loss": 0.5})
    for content in (ArrayRecord(within), of_arrays, RecordDict({"arrays": of_metrics})):
        superlink.upload(holding(content))
    replies = list(grid.pull_messages(["message-5"]))
    assert len(replies) == 3
    for reply in replies:
        assert reply.error.reason.startswith("its reply is not a Flower message")


def test_a_reply_in_the_name_of_another_client_is_refused(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    superlink.upload(reply_of(6))
    superlink.envelopes[0].metadata.src_node_id = 5  # who sent it, as the SuperLink knows
    (reply,) = grid.pull_messages(["message-6"])
    assert reply.metadata.src_node_id == 5
    assert reply.error.reason.startswith("its reply claims to be from another client")


def test_a_reply_that_never_comes_whole_is_an_error_of_its_client(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    del superlink.objects[superlink.upload(reply_of(5))[-1]]
    (reply,) = grid.pull_messages(["message-5"])
    assert reply.error.reason.startswith("its reply is incomplete: ")


def test_of_a_reply_that_is_too_large_no_more_is_taken_than_its_limit(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    arrays = {f"layer{n}": np.full(2**18, n, np.float64) for n in range(20)}  # 2 MiB each
    superlink.upload(Message(RecordDict({"arrays": record_of(arrays)}), reply_to=asked(5)))
    (reply,) = grid.pull_messages(["message-5"])
    assert f"its reply has more than {REPLY_MARGIN:,} bytes" in reply.error.reason
    assert superlink.pulled < REPLY_MARGIN + 3 * 2**21  # two are pulled at a time
    assert len(superlink.confirmed) == 1


def test_a_reply_may_be_some_times_as_large_as_its_message(
    superlink: SuperLink, grid: BoundedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = record_of({f"layer{n}": np.full(2**18, n, np.float64) for n in range(6)})
    ask = Message(RecordDict({"arrays": arrays}), dst_node_id=5, message_type="train")
    monkeypatch.setattr(HttpGrid, "push_messages", lambda _, messages: ["message-5"])
    assert grid.push_messages([ask]) == ["message-5"]
    large = {f"layer{n}": np.full(2**18, 10 + n, np.float64) for n in range(10)}
    content = RecordDict({"arrays": record_of(large)})  # 20 MiB, beyond what may be said to nothing
    superlink.upload(Message(content, reply_to=asked(5)))
    (reply,) = grid.pull_messages(["message-5"])
    assert reply.has_content()


def test_a_superlink_that_is_gone_is_no_clients_fault(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    superlink.upload(reply_of(5))
    superlink.broken = httpx.ConnectError("gone")
    with pytest.raises(httpx.ConnectError):
        list(grid.pull_messages(["message-5"]))
