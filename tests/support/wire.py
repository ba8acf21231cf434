"""A SerializingGrid whose replies are pulled later, as with Flower's HttpGrid."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from flwr.app import Message

from fixbn_flwr.flower_compat import make_message
from fixbn_flwr.testing import SerializingGrid


class Wire(SerializingGrid):
    """A grid that returns replies on every second pull, and records all messages unchanged.

    Attributes:
        sent: all messages to clients.
        received: all replies.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self._pulls = 0
        self._lock = threading.Lock()  # the older generation pulls in one thread per client

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        with self._lock:
            self.sent += sent
            message_ids = list(super().push_messages(sent))
            self.received += super().pull_messages(message_ids)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        requested = set(message_ids)
        with self._lock:
            self._pulls += 1
            if self._pulls % 2:
                return []
            return [
                _copy_of(reply)
                for reply in self.received
                if reply.metadata.reply_to_message_id in requested
            ]


def _copy_of(reply: Message) -> Message:
    if reply.has_error():
        return make_message(metadata=reply.metadata, error=reply.error)
    return make_message(metadata=reply.metadata, content=reply.content.copy())
