"""Fetch replies without blocking, enforce a size limit, and turn bad ones into error replies.

Flower's ``HttpGrid.pull_messages`` blocks until a client has uploaded every object of its reply,
for minutes if necessary, while all other replies wait. It accepts a reply of any size, and a reply
that it cannot parse ends the run. ``BoundedGrid`` sends the same requests (flwr 1.41,
``flwr/superlink/grid/http_grid.py``) but never blocks: it fetches the objects that are there and
leaves the rest to the next call. A reply that is too large or cannot be parsed becomes an error
reply of its client. Flower's older generation sends and receives in one thread per client, so
several threads may use one grid at a time, each for its own messages.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from flwr.app import Message, Metadata

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.flower_compat import (
    ConfirmMessageReceivedRequest,
    ObjectPullError,
    ObjectUnavailableError,
    PullAppMessagesRequest,
    error_reply,
    inflate_object_from_contents,
    iterate_object_tree,
    make_pull_object_fn_protobuf,
    metadata_from_proto,
    pull_objects,
)
from fixbn_flwr.log import shortened
from fixbn_flwr.transport.delegating_grid import DelegatingGrid

if TYPE_CHECKING:
    from fixbn_flwr.flower_compat import HttpGrid

REPLY_TO_MESSAGE = 4  # a reply may have this many times the bytes of its message's arrays
REPLY_MARGIN = 2**24  # and this many bytes more, so that a small message can have a large reply


class BoundedGrid(DelegatingGrid):
    """A Grid that fetches replies between machines without blocking, each up to a size limit.

    Only ``push_messages`` and ``pull_messages`` differ from Flower's. Wrap it in a ``PackedGrid``,
    whose ``send_and_receive`` calls them.

    Args:
        grid: Flower's Grid.
    """

    def __init__(self, grid: HttpGrid) -> None:
        super().__init__(grid)
        self._http = grid
        self._limits: dict[str, int] = {}  # bytes a reply may have, by the id of its message
        self._incoming: list[_IncomingReply] = []
        self._lock = threading.Lock()  # of the list; held during no request

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and set the size limit of each reply."""
        messages = list(messages)
        sizes = [_bytes_of_arrays(message) for message in messages]
        message_ids = list(self._http.push_messages(messages))
        with self._lock:
            late = [incoming for incoming in self._incoming if not incoming.is_awaited()]
        for incoming in late:
            incoming.discard()
        # Flower returns an empty list if sending failed, or None for a single message that failed.
        for message_id, size in zip(message_ids, sizes, strict=False):
            if message_id:
                self._limits[message_id] = REPLY_TO_MESSAGE * size + REPLY_MARGIN
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived in full; a bad one is returned as an error reply."""
        message_ids = set(message_ids)
        # The SuperLink announces a reply once and then forgets its message.
        with self._lock:
            announced = {incoming.metadata.reply_to_message_id for incoming in self._incoming}
        new = self._announced(message_ids - announced) if message_ids - announced else []
        with self._lock:
            self._incoming += new
            wanted = [
                incoming
                for incoming in self._incoming
                if incoming.metadata.reply_to_message_id in message_ids
            ]
        fetched = [(incoming, self._fetch(incoming)) for incoming in wanted]
        replies = {incoming: reply for incoming, reply in fetched if reply is not None}
        with self._lock:
            self._incoming = [incoming for incoming in self._incoming if incoming not in replies]
        return list(replies.values())

    def _announced(self, message_ids: set[str]) -> list[_IncomingReply]:
        """Return the replies to these messages that the SuperLink announces."""
        request = PullAppMessagesRequest(message_ids=message_ids)
        response = self._http._runtime_client.PullMessages(request)
        announced = []
        for envelope, tree in zip(
            response.messages_list, response.message_object_trees, strict=True
        ):
            # The SuperLink has checked this metadata. The rest is whatever the client sent.
            metadata = metadata_from_proto(envelope.metadata)
            limit = self._limits.pop(metadata.reply_to_message_id, REPLY_MARGIN)
            object_ids = dict.fromkeys(node.object_id for node in iterate_object_tree(tree))
            announced.append(_IncomingReply(metadata, list(object_ids), limit))
        return announced

    def _fetch(self, incoming: _IncomingReply) -> Message | None:
        """Fetch the missing objects of a reply; return it, an error reply, or None to wait."""
        metadata = incoming.metadata
        pull_object = make_pull_object_fn_protobuf(
            self._http._runtime_client.PullObject, self._http.node, metadata.run_id
        )
        incoming.unavailable = False
        incoming.thread = threading.current_thread()
        try:
            pull_objects(
                [name for name in incoming.object_ids if name not in incoming.contents],
                partial(incoming.fetch_object, pull_object),
                max_tries_per_object=1,
            )
            reply = _parse(metadata, incoming.contents)
        except ObjectPullError as error:
            if incoming.unavailable:
                return None
            reply = error_reply(metadata, f"its reply is incomplete: {error}")
        except ReplyError as error:
            reply = error_reply(metadata, str(error))
        # The SuperLink deletes its copy.
        self._http._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._http.node,
                run_id=metadata.run_id,
                message_object_id=metadata.message_id,
            )
        )
        return reply


@dataclass(eq=False)
class _IncomingReply:
    """A reply that the SuperLink has announced, and the part of it that has been fetched.

    Attributes:
        metadata: The metadata, as the SuperLink checked it.
        object_ids: The ids of its objects.
        limit: The bytes that its objects may have together.
        contents: The objects fetched so far, by id.
        unavailable: Whether an object was missing at the last attempt.
        thread: The thread that made the last attempt, or got the announcement.
    """

    metadata: Metadata
    object_ids: list[str]
    limit: int
    contents: dict[str, bytes] = field(default_factory=dict)
    unavailable: bool = False
    thread: threading.Thread = field(default_factory=threading.current_thread)
    _fetched_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fetch_object(self, pull_object: Callable[[str], bytes], object_id: str) -> bytes:
        """Fetch one object. Flower fetches two at a time, in threads.

        Raises:
            ReplyError: If the objects have more bytes than the limit.
            ObjectUnavailableError: If the client has not uploaded the object yet.
            ObjectPullError: If the object will never be available.
        """
        try:
            content = pull_object(object_id)
        except ObjectUnavailableError:
            self.unavailable = True
            raise
        with self._lock:
            self.contents[object_id] = content
            self._fetched_bytes += len(content)
            if self._fetched_bytes > self.limit:
                raise ReplyError(
                    f"its reply has more than {self.limit:,} bytes ({REPLY_TO_MESSAGE} times its "
                    f"message plus {REPLY_MARGIN:,}): return only the model, momentum buffers and "
                    "metrics. The rest was not fetched."
                )
        return content

    def is_awaited(self) -> bool:
        """Return whether another thread may wait for the reply.

        A thread that sends its next messages, or has ended, waits no longer.
        """
        return self.thread is not threading.current_thread() and self.thread.is_alive()

    def discard(self) -> None:
        """Free the objects fetched so far. They can be fetched again."""
        with self._lock:
            self.contents, self._fetched_bytes = {}, 0


def _parse(metadata: Metadata, contents: dict[str, bytes]) -> Message:
    """Return the message that a client's objects contain.

    Raises:
        ReplyError: If they contain no message, or one whose metadata differs from the SuperLink's.
    """
    try:
        reply = inflate_object_from_contents(metadata.message_id, contents)
    except Exception as error:  # a client can send any bytes
        raise ReplyError(shortened(f"its reply is not a Flower message: {error!r}")) from error
    if not isinstance(reply, Message):
        raise ReplyError(f"its reply is not a message but a {type(reply).__name__}.")
    reply.metadata.__dict__["_message_id"] = metadata.message_id
    claimed, checked = (
        (m.run_id, m.src_node_id, m.reply_to_message_id) for m in (reply.metadata, metadata)
    )
    if claimed != checked:
        raise ReplyError("its reply claims to be from another client or to another message.")
    return reply


def _bytes_of_arrays(message: Message) -> int:
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())
