"""Collect the replies of a round: one per client, in a stable order.

Stale, duplicate or inconsistent replies are dropped and logged by client. Replies arrive in any
order, strategies sample clients in a new order each round, and sums of floats depend on the order.
So replies are put in the order of the grid's nodes, which is stable; the app's grid lists nodes by
partition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from flwr.common import Message

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.flower_compat import error_reply
from fixbn_flwr.method.update import Update
from fixbn_flwr.server.dropped_replies import DroppedReply, DroppedReplyLog

Client = TypeVar("Client", int, str)
Reply = TypeVar("Reply")
Content = TypeVar("Content")

_INCONSISTENT = (
    "the names of its records, metrics or momentum buffers differ from those of most replies, so "
    "they cannot be averaged together: let all clients return the same names."
)


@dataclass(frozen=True)
class CheckedReply(Generic[Content]):
    """A reply that passed its checks.

    Attributes:
        content: The reply without what belongs to FixBN alone.
        update: What FixBN averages itself.
        form: What must be equal in replies that are averaged together.
        model_key: The key of the model's record in ``content``, where it has one.
    """

    content: Content
    update: Update
    form: Hashable
    model_key: str = ""


@dataclass(frozen=True)
class Selection(Generic[Client, Reply, Content]):
    """The replies of a round that can be averaged together, and the others.

    Attributes:
        usable: Each client's reply and what its check returned, in a stable order.
        dropped: The other replies.
        errors: The error replies that a Message API strategy sees instead of dropped ones.
    """

    usable: dict[Client, tuple[Reply, CheckedReply[Content]]]
    dropped: list[DroppedReply]
    errors: Sequence[Message] = ()

    @property
    def checked(self) -> dict[Client, CheckedReply[Content]]:
        """Each client's checked reply, in their order."""
        return {client: checked for client, (_, checked) in self.usable.items()}


def select(
    server_round: int,
    replies: Iterable[tuple[Client, Reply]],
    check: Callable[[Client, Reply], CheckedReply[Content]],
    log: DroppedReplyLog,
    dropped: Iterable[DroppedReply] = (),
) -> Selection[Client, Reply, Content]:
    """Check replies, and drop and log those that cannot be averaged with the others.

    Args:
        server_round: The round, for the log.
        replies: Clients and their replies, in a stable order.
        check: Returns what is needed of a reply, or raises a ``ReplyError`` that says why the
            reply must be dropped.
        log: Logs the dropped replies.
        dropped: Replies that have failed already.
    """
    usable: dict[Client, tuple[Reply, CheckedReply[Content]]] = {}
    all_dropped = list(dropped)
    for client, reply in replies:
        try:
            if client in usable:
                raise ReplyError("it replied twice in this round: the first reply counts.")
            usable[client] = (reply, check(client, reply))
        except ReplyError as error:
            all_dropped.append(DroppedReply.for_error(client, error))
    forms = Counter(checked.form for _, checked in usable.values())
    for client, (_, checked) in list(usable.items()):
        if checked.form != forms.most_common(1)[0][0]:
            all_dropped.append(DroppedReply(client, _INCONSISTENT))
            del usable[client]
    log.add(server_round, all_dropped)
    return Selection(usable, all_dropped)


class RoundMessages:
    """The messages of one round.

    Args:
        messages: The messages that were, or will be, sent. Flower sets their ids when it sends
            them.
        node_ids: All nodes, in the grid's order.
    """

    def __init__(self, messages: Sequence[Message], node_ids: Iterable[int]) -> None:
        place = {node_id: place for place, node_id in enumerate(node_ids)}
        nodes = [message.metadata.dst_node_id for message in messages]
        self._messages = messages
        self._place = {
            node_id: number
            for number, node_id in enumerate(
                sorted(nodes, key=lambda node_id: place.get(node_id, len(place)))
            )
        }

    def __len__(self) -> int:
        return len(self._messages)

    def select(
        self,
        server_round: int,
        replies: Iterable[Message],
        check: Callable[[Message], CheckedReply[Content]],
        log: DroppedReplyLog,
    ) -> Selection[int, Message, Content]:
        """Select the usable replies to these messages; see ``select``."""
        ids = {message.metadata.message_id for message in self._messages} - {""}

        def is_of_round(reply: Message) -> bool:
            if ids:
                return reply.metadata.reply_to_message_id in ids
            return reply.metadata.src_node_id in self._place

        def check_message(client: int, reply: Message) -> CheckedReply[Content]:
            if reply.has_error():
                raise ReplyError(f"it failed (code {reply.error.code}): {reply.error.reason}")
            if client not in self._place or not is_of_round(reply):
                raise ReplyError(
                    f"it answers message {reply.metadata.reply_to_message_id!r}, which was not "
                    "sent in this round: it is from another round, or from a client that was not "
                    "sampled."
                )
            return check(reply)

        clients = [(reply.metadata.src_node_id, reply) for reply in replies]
        clients.sort(key=lambda pair: self._place.get(pair[0], len(self._place)))
        selection = select(server_round, clients, check_message, log)
        reasons = {drop.client: drop.reason for drop in selection.dropped if not drop.no_examples}
        errors = [
            reply if reply.has_error() else error_reply(reply.metadata, reasons[client])
            for client, reply in clients
            if client in reasons and client not in selection.usable and is_of_round(reply)
        ]
        return replace(selection, errors=errors)
