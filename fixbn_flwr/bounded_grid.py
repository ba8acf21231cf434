"""Taking replies in from the SuperLink: each at once, only as far as it may be large, or named.

Flower's ``HttpGrid.pull_messages`` waits a second, then two, then four, for an object that its
client has not uploaded yet; it takes a reply in whole, of whatever size; and one that is no message
at all ends the run for everybody. This does the same by the same requests (flwr 1.41,
``flwr/superlink/grid/http_grid.py``), looks ten times as often, stops at the limit, and makes of
what cannot be used an error reply of the client that sent it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from flwr.app import Error, Message, Metadata
from flwr.app.message.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid import HttpGrid

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.failures import cut
from fixbn_flwr.grid import GridAround

TIMES = 4  # a reply may be so many times as large as its message: a model, momentum, metrics
BESIDE = 2**24  # and so many bytes more, also where little was sent
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0  # seconds, for an object that is on its way


class BoundedGrid(GridAround):
    """A Grid between machines whose replies are taken in one by one, each up to its limit.

    Args:
        grid: Flower's own.
    """

    def __init__(self, grid: HttpGrid) -> None:
        super().__init__(grid)
        self._http = grid
        self._limits: dict[str, int] = {}  # bytes, by the message that a reply is to

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and keep in mind how large their replies may be."""
        messages = list(messages)
        sizes = [_bytes_of_arrays(message) for message in messages]
        message_ids = list(self._http.push_messages(messages))
        # Flower gives no numbers at all where it could not send, or None for one message of many.
        for message_id, size in zip(message_ids, sizes, strict=False):
            if message_id:
                self._limits[message_id] = TIMES * size + BESIDE
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived; what is no usable one as its client's error."""
        asked = PullAppMessagesRequest(message_ids=message_ids)
        answer = self._http._runtime_client.PullMessages(asked)
        pairs = zip(answer.messages_list, answer.message_object_trees, strict=True)
        return [self._take_in(envelope, tree) for envelope, tree in pairs]

    def _take_in(self, envelope: ProtoMessage, tree: ObjectTree) -> Message:
        # What the SuperLink says of the reply, which it has checked; all else is the client's word.
        metadata = metadata_from_proto(envelope.metadata)
        limit = self._limits.pop(metadata.reply_to_message_id, BESIDE)
        try:
            reply = _read(metadata, self._pull(metadata, tree, limit))
        except ObjectPullError as error:
            reply = _failed(metadata, f"its reply has not arrived whole: {error}")
        except ReplyError as error:
            reply = _failed(metadata, str(error))
        # From here on the SuperLink need not keep it.
        self._http._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._http.node,
                run_id=metadata.run_id,
                message_object_id=metadata.message_id,
            )
        )
        return reply

    def _pull(self, metadata: Metadata, tree: ObjectTree, limit: int) -> dict[str, bytes]:
        pull_object = make_pull_object_fn_protobuf(
            self._http._runtime_client.PullObject, self._http.node, metadata.run_id
        )
        return pull_objects(
            [node.object_id for node in iterate_object_tree(tree)],
            _up_to(limit, pull_object),
            initial_backoff=_FIRST_PAUSE,
            backoff_cap=_LONGEST_PAUSE,
        )


def _read(metadata: Metadata, contents: dict[str, bytes]) -> Message:
    """Return the message that a client's objects make up.

    Raises:
        ReplyError: they make up none, or one that pretends to be another's.
    """
    try:
        reply = inflate_object_from_contents(metadata.message_id, contents)
    except Exception as error:  # whatever a client may have made up
        raise ReplyError(cut(f"its reply is no message of Flower's: {error!r}")) from error
    if not isinstance(reply, Message):
        raise ReplyError(f"its reply is no message, but {type(reply).__name__}.")
    reply.metadata.__dict__["_message_id"] = metadata.message_id
    claims, known = (
        (m.run_id, m.src_node_id, m.reply_to_message_id) for m in (reply.metadata, metadata)
    )
    if claims != known:
        raise ReplyError("its reply pretends to be another client's, or to another message.")
    return reply


def _up_to(limit: int, pull_object: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """Return a function that pulls objects until they have more bytes together than the limit."""
    taken, lock = 0, threading.Lock()

    def pull(object_id: str) -> bytes:
        nonlocal taken
        content = pull_object(object_id)
        with lock:
            taken += len(content)
            if taken > limit:
                raise ReplyError(
                    f"its reply has more than {limit:,} bytes, {TIMES} times its message and "
                    f"{BESIDE:,}: return the model, momentum and numbers. The rest was not taken."
                )
        return content

    return pull


def _bytes_of_arrays(message: Message) -> int:
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())


def _failed(metadata: Metadata, reason: str) -> Message:
    return make_message(
        metadata=metadata, error=Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
    )
