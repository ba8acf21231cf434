"""Taking replies in from the SuperLink: each at once, only as far as it may be large, or named.

Flower's ``HttpGrid.pull_messages`` waits for each object that its client has not uploaded yet, for
minutes if need be, while all other replies wait as well; it takes a reply in whole, of whatever
size; and one that is no message at all ends the run for everybody. This does the same by the same
requests (flwr 1.41, ``flwr/superlink/grid/http_grid.py``), but never waits: what is there is taken,
what is not yet is looked for by the next call. It stops at the limit, and makes of what cannot be
used an error reply of the client that sent it.
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
    inflate_object_from_contents,
    iterate_object_tree,
    make_pull_object_fn_protobuf,
    metadata_from_proto,
    pull_objects,
)
from fixbn_flwr.log import shortened
from fixbn_flwr.transport.delegating_grid import GridAround, error_reply

if TYPE_CHECKING:
    from fixbn_flwr.flower_compat import HttpGrid

TIMES = 4  # a reply may be so many times as large as its message: a model, momentum, metrics
BESIDE = 2**24  # and so many bytes more, also where little was sent


class BoundedGrid(GridAround):
    """A Grid between machines whose replies are taken in one by one, each up to its limit.

    ``FlatGrid`` around it is what waits for them: ``send_and_receive`` is Flower's own here.

    Args:
        grid: Flower's own.
    """

    def __init__(self, grid: HttpGrid) -> None:
        super().__init__(grid)
        self._http = grid
        self._limits: dict[str, int] = {}  # bytes, by the message that a reply is to
        self._arriving: list[_Arriving] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and keep in mind how large their replies may be."""
        messages = list(messages)
        sizes = [_bytes_of_arrays(message) for message in messages]
        message_ids = list(self._http.push_messages(messages))
        for arriving in self._arriving:  # too late for their round, as far as anybody knows
            arriving.let_go()
        # Flower gives no numbers at all where it could not send, or None for one message of many.
        for message_id, size in zip(message_ids, sizes, strict=False):
            if message_id:
                self._limits[message_id] = TIMES * size + BESIDE
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived whole; what is no usable one as an error reply."""
        message_ids = set(message_ids)
        # The SuperLink tells of a reply once, and forgets the message.
        told = {arriving.metadata.reply_to_message_id for arriving in self._arriving}
        if message_ids - told:
            self._arriving += self._ask(message_ids - told)
        replies, still_arriving = [], []
        for arriving in self._arriving:
            asked_for = arriving.metadata.reply_to_message_id in message_ids
            reply = self._take_in(arriving) if asked_for else None
            if reply is None:
                still_arriving.append(arriving)
            else:
                replies.append(reply)
        self._arriving = still_arriving
        return replies

    def _ask(self, message_ids: set[str]) -> list[_Arriving]:
        """Return the replies to messages that the SuperLink tells of."""
        asked = PullAppMessagesRequest(message_ids=message_ids)
        answer = self._http._runtime_client.PullMessages(asked)
        told = []
        for envelope, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            # What the SuperLink says of the reply, which it has checked; all else is the client's.
            metadata = metadata_from_proto(envelope.metadata)
            limit = self._limits.pop(metadata.reply_to_message_id, BESIDE)
            names = dict.fromkeys(node.object_id for node in iterate_object_tree(tree))
            told.append(_Arriving(metadata, list(names), limit))
        return told

    def _take_in(self, arriving: _Arriving) -> Message | None:
        """Return a reply as far as it is there: whole, as an error, or not yet."""
        metadata = arriving.metadata
        pull_object = make_pull_object_fn_protobuf(
            self._http._runtime_client.PullObject, self._http.node, metadata.run_id
        )
        arriving.on_its_way = False
        try:
            pull_objects(
                [name for name in arriving.names if name not in arriving.contents],
                partial(arriving.take, pull_object),
                max_tries_per_object=1,
            )
            reply = _read(metadata, arriving.contents)
        except ObjectPullError as error:
            if arriving.on_its_way:
                return None
            reply = error_reply(metadata, f"its reply has not arrived whole: {error}")
        except ReplyError as error:
            reply = error_reply(metadata, str(error))
        # From here on the SuperLink need not keep it.
        self._http._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._http.node,
                run_id=metadata.run_id,
                message_object_id=metadata.message_id,
            )
        )
        return reply


@dataclass
class _Arriving:
    """A reply of which the SuperLink has told, and what of it has been taken.

    Attributes:
        metadata: as the SuperLink knows them.
        names: of its objects.
        limit: how many bytes they may have together.
        contents: of the objects that have been taken, by name.
        on_its_way: whether an object was not there yet at the last look.
    """

    metadata: Metadata
    names: list[str]
    limit: int
    contents: dict[str, bytes] = field(default_factory=dict)
    on_its_way: bool = False
    _taken: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, pull_object: Callable[[str], bytes], name: str) -> bytes:
        """Take an object; two are taken at a time.

        Raises:
            ReplyError: together they have more bytes than the limit.
            ObjectUnavailableError: it has not been uploaded yet.
            ObjectPullError: it will never be there.
        """
        try:
            content = pull_object(name)
        except ObjectUnavailableError:
            self.on_its_way = True
            raise
        with self._lock:
            self.contents[name] = content
            self._taken += len(content)
            if self._taken > self.limit:
                raise ReplyError(
                    f"its reply has more than {self.limit:,} bytes, {TIMES} times its message and "
                    f"{BESIDE:,}: return the model, momentum and numbers. The rest was not taken."
                )
        return content

    def let_go(self) -> None:
        """Forget what was taken: it can be taken again."""
        with self._lock:
            self.contents, self._taken = {}, 0


def _read(metadata: Metadata, contents: dict[str, bytes]) -> Message:
    """Return the message that a client's objects make up.

    Raises:
        ReplyError: they make up none, or one that pretends to be another's.
    """
    try:
        reply = inflate_object_from_contents(metadata.message_id, contents)
    except Exception as error:  # whatever a client may have made up
        raise ReplyError(shortened(f"its reply is no message of Flower's: {error!r}")) from error
    if not isinstance(reply, Message):
        raise ReplyError(f"its reply is no message, but {type(reply).__name__}.")
    reply.metadata.__dict__["_message_id"] = metadata.message_id
    claims, known = (
        (m.run_id, m.src_node_id, m.reply_to_message_id) for m in (reply.metadata, metadata)
    )
    if claims != known:
        raise ReplyError("its reply pretends to be another client's, or to another message.")
    return reply


def _bytes_of_arrays(message: Message) -> int:
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())
