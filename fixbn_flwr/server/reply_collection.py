"""What was asked of clients in a round, and which of the replies count.

Replies come in any order, and Flower asks in an order that strategies draw anew each round, while
sums of floats depend on it: they are put into the order of the grid's nodes, which lasts; the app's
grid lists them by partition. What answers nothing of this round, twice, or not as the others do, is
sorted out and named.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import TypeVar

from flwr.app import Message

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.log import shortened
from fixbn_flwr.method.server_rules import Update
from fixbn_flwr.server.failed_rounds import Problem, log_problems
from fixbn_flwr.server.reply_checks import UNLIKE_THE_OTHERS, form_of, unlike_the_others

Read = TypeVar("Read")


class Asked:
    """The messages of one round.

    Args:
        messages: that were, or will be, sent; Flower numbers them when it sends them.
        node_ids: all nodes, in the grid's order.
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

    def sorted_out(
        self, server_round: int, replies: Iterable[Message], read: Callable[[Message], Read]
    ) -> tuple[dict[int, tuple[Message, Read]], list[Problem]]:
        """Return by client the replies that can be averaged together, as read, and log the others.

        They are in a lasting order; the others come second, each with its client and the reason.
        """
        ids = {message.metadata.message_id for message in self._messages} - {""}
        usable: dict[int, tuple[Message, Read]] = {}
        problems: list[Problem] = []
        for reply in self._in_order(replies):
            client = reply.metadata.src_node_id
            try:
                if reply.has_error():
                    raise ReplyError(f"it failed (code {reply.error.code}): {reply.error.reason}")
                self._check(reply, ids, already=usable)
                usable[client] = (reply, read(reply))
            except ReplyError as problem:
                problems.append((client, shortened(str(problem))))
        forms = [
            form_of(reply.content, update.momentum if isinstance(update, Update) else {})
            for reply, update in usable.values()
        ]
        for client in [list(usable)[place] for place in unlike_the_others(forms)]:
            problems.append((client, UNLIKE_THE_OTHERS))
            del usable[client]
        log_problems(server_round, problems)
        return usable, problems

    def _in_order(self, replies: Iterable[Message]) -> list[Message]:
        last = len(self._place)
        return sorted(replies, key=lambda m: self._place.get(m.metadata.src_node_id, last))

    def _check(self, reply: Message, ids: set[str], already: Container[int]) -> None:
        """Raise a `ReplyError` when a reply answers nothing that was asked in this round."""
        client, answered = reply.metadata.src_node_id, reply.metadata.reply_to_message_id
        if client in already:
            raise ReplyError("it replied twice in this round: the first reply counts.")
        if client not in self._place or (ids and answered not in ids):
            raise ReplyError(
                f"it answers message {answered!r}, which is none of this round's: it comes from "
                "another round, or from a client that was not asked."
            )
