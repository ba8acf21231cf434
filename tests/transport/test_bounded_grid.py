"""Replies pulled from the SuperLink: valid replies are complete, invalid ones name their client.

An in-memory SuperLink answers the requests, with Flower's protocol buffers.
tests/deploy/test_faults.py tests the limit between real processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.superlink.grid import HttpGrid

from fixbn_flwr.array_records import record_of
from fixbn_flwr.transport.bounded_grid import REPLY_MARGIN, BoundedGrid
from tests.support.uploads import SuperLink, grid_of, message_to, reply_of


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink()


@pytest.fixture
def grid(superlink: SuperLink) -> BoundedGrid:
    return grid_of(superlink)


def test_replies_are_returned_in_order_and_confirmed(
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


def test_an_incomplete_reply_is_pulled_later_and_does_not_delay_others(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    both = ["message-5", "message-6"]
    superlink.polls_until_uploaded[superlink.upload(reply_of(5))[-1]] = 2
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


def test_a_late_reply_uses_no_memory(
    superlink: SuperLink, grid: BoundedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    superlink.polls_until_uploaded[superlink.upload(reply_of(5))[-1]] = 1
    assert list(grid.pull_messages(["message-5"])) == []
    (arriving,) = grid._incoming
    assert arriving.contents
    monkeypatch.setattr(HttpGrid, "push_messages", lambda _, messages: ["message-6"])
    grid.push_messages([message_to(6)])
    assert not arriving.contents
    (late,) = grid.pull_messages(["message-5"])  # it can still be pulled
    assert late.content == reply_of(5).content


# Flower's older generation sends and receives in one thread per client.


def in_a_thread(function: Callable[..., Any], *args: object) -> Any:
    """Return what a function returns in another thread, which has then ended."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args).result(timeout=60)


def before(
    monkeypatch: pytest.MonkeyPatch, superlink: SuperLink, name: str, run: Callable[[], object]
) -> None:
    """Make the SuperLink run something in another thread before it answers its next request."""
    answer, is_next = getattr(superlink, name), threading.Lock()

    def answer_later(request: object) -> object:
        response = answer(request)
        if is_next.acquire(blocking=False):
            in_a_thread(run)
        return response

    monkeypatch.setattr(superlink, name, answer_later)


@pytest.mark.parametrize("request_name", ["PullMessages", "PullObject", "ConfirmMessageReceived"])
def test_a_thread_neither_blocks_another_nor_loses_its_replies(
    superlink: SuperLink, grid: BoundedGrid, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    def pull_others() -> None:
        superlink.upload(reply_of(6))
        (six,) = grid.pull_messages(["message-6"])
        assert six.content == reply_of(6).content
        superlink.polls_until_uploaded[superlink.upload(reply_of(7))[-1]] = 1
        assert list(grid.pull_messages(["message-7"])) == []

    superlink.upload(reply_of(5))
    before(monkeypatch, superlink, request_name, pull_others)
    (five,) = grid.pull_messages(["message-5"])
    assert five.content == reply_of(5).content
    (seven,) = grid.pull_messages(["message-7"])
    assert seven.content == reply_of(7).content
    assert list(grid.pull_messages(["message-8"])) == []
    assert len(superlink.confirmed) == 3


def test_a_thread_that_sends_frees_only_replies_that_no_thread_awaits(
    superlink: SuperLink, grid: BoundedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HttpGrid, "push_messages", lambda _, messages: ["message-6"])
    superlink.polls_until_uploaded[superlink.upload(reply_of(5))[-1]] = 1
    with ThreadPoolExecutor(1) as thread:
        pulled: Future[Any] = thread.submit(grid.pull_messages, ["message-5"])
        assert list(pulled.result(timeout=60)) == []
        (arriving,) = grid._incoming
        grid.push_messages([message_to(6)])
        assert arriving.contents
    grid.push_messages([message_to(6)])  # the thread has ended
    assert not arriving.contents


def test_a_reply_that_is_fetched_while_another_thread_sends_is_complete(
    superlink: SuperLink, grid: BoundedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HttpGrid, "push_messages", lambda _, messages: ["message-6"])
    *_, last = superlink.upload(reply_of(5))
    superlink.polls_until_uploaded[last] = 1
    assert list(grid.pull_messages(["message-5"])) == []
    before(monkeypatch, superlink, "PullObject", lambda: grid.push_messages([message_to(6)]))
    (reply,) = grid.pull_messages(["message-5"])
    assert reply.content == reply_of(5).content


def a_wrong_header(reply: Message) -> bytes:
    return b"ArrayRecord,,5\x00wrong"


def a_pickle(reply: Message) -> bytes:
    return b"\x80\x04cos\nsystem\n"


def another_record(reply: Message) -> bytes:
    return MetricRecord({"loss": 0.5}).deflate()


def another_clients_reply(reply: Message) -> bytes:
    other = Message(reply.content, reply_to=message_to(6))
    return Message(other.content, reply_to=message_to(6)).deflate()


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (a_wrong_header, "its reply is not a Flower message"),
        (a_pickle, "its reply is not a Flower message"),
        (another_record, "its reply is not a message but a MetricRecord"),
        (
            another_clients_reply,
            "its reply is not a Flower message",
        ),  # its objects are not in the tree
    ],
)
def test_a_forged_reply_becomes_an_error_of_its_client_and_the_others_pass(
    superlink: SuperLink,
    grid: BoundedGrid,
    forge: Callable[[Message], bytes],
    reason: str,
) -> None:
    superlink.upload_bytes(reply_of(5), forge(reply_of(5)))
    superlink.upload(reply_of(7))
    bad, good = grid.pull_messages(["message-5", "message-7"])
    assert bad.metadata.src_node_id == 5
    assert bad.metadata.reply_to_message_id == "message-5"
    assert bad.error.reason.startswith(reason)
    assert good.content == reply_of(7).content
    assert len(superlink.confirmed) == 2


def reply_with(content: object) -> Message:
    """Return a reply with any content."""
    reply = reply_of(5)
    reply.__dict__["_content"] = content
    return reply


def test_a_reply_without_records_is_refused(superlink: SuperLink, grid: BoundedGrid) -> None:
    within = {"w": Array(np.arange(3.0))}
    of_arrays, of_metrics = RecordDict(), ArrayRecord()
    of_arrays.__dict__["_data"]["arrays"] = within["w"]  # past Flower's own checks
    of_metrics.__dict__["_data"]["w"] = MetricRecord({"loss": 0.5})
    for content in (ArrayRecord(within), of_arrays, RecordDict({"arrays": of_metrics})):
        superlink.upload(reply_with(content))
    replies = list(grid.pull_messages(["message-5"]))
    assert len(replies) == 3
    for reply in replies:
        assert reply.error.reason.startswith("its reply is not a Flower message")


def test_a_reply_in_the_name_of_another_client_is_refused(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    superlink.upload(reply_of(6))
    superlink.envelopes[0].metadata.src_node_id = 5  # the sender, as known to the SuperLink
    (reply,) = grid.pull_messages(["message-6"])
    assert reply.metadata.src_node_id == 5
    assert reply.error.reason.startswith("its reply claims to be from another client")


def test_an_incomplete_reply_becomes_an_error_of_its_client(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    del superlink.objects[superlink.upload(reply_of(5))[-1]]
    (reply,) = grid.pull_messages(["message-5"])
    assert reply.error.reason.startswith("its reply is incomplete: ")


def test_a_reply_that_is_too_large_is_pulled_only_up_to_the_limit(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    arrays = {f"layer{n}": np.full(2**18, n, np.float64) for n in range(20)}  # 2 MiB each
    superlink.upload(Message(RecordDict({"arrays": record_of(arrays)}), reply_to=message_to(5)))
    (reply,) = grid.pull_messages(["message-5"])
    assert f"its reply has more than {REPLY_MARGIN:,} bytes" in reply.error.reason
    assert superlink.pulled < REPLY_MARGIN + 3 * 2**21  # two are pulled at a time
    assert len(superlink.confirmed) == 1


def test_a_reply_may_be_several_times_as_large_as_its_message(
    superlink: SuperLink, grid: BoundedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = record_of({f"layer{n}": np.full(2**18, n, np.float64) for n in range(6)})
    message = message_to(5)
    message.content = RecordDict({"arrays": arrays})
    monkeypatch.setattr(HttpGrid, "push_messages", lambda _, messages: ["message-5"])
    assert grid.push_messages([message]) == ["message-5"]
    large = {f"layer{n}": np.full(2**18, 10 + n, np.float64) for n in range(10)}
    content = RecordDict(
        {"arrays": record_of(large)}
    )  # 20 MiB, beyond the limit for an empty message
    superlink.upload(Message(content, reply_to=message_to(5)))
    (reply,) = grid.pull_messages(["message-5"])
    assert reply.has_content()


def test_a_lost_superlink_is_not_reported_as_an_error_of_a_client(
    superlink: SuperLink, grid: BoundedGrid
) -> None:
    superlink.upload(reply_of(5))
    superlink.broken = httpx.ConnectError("gone")
    with pytest.raises(httpx.ConnectError):
        list(grid.pull_messages(["message-5"]))
