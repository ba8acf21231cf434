"""Packed arrays, fast polling and bounded replies, for federations on real machines.

    grid = flat_in_deployment(grid)                                      # server, in @app.main()
    app = ClientApp(client_fn=client_fn, mods=[flat_arrays_mod])         # client, first of its mods
    @app.train(mods=[flat_arrays_mod])                                   # client, Message API

Between machines Flower transfers each array of a message as two or more objects, with separate
requests at every hop, and polls for replies every 3 seconds. 122 arrays of 45 MB take 24 to 32
seconds there and back; packed into four arrays they take 5 to 7. So the server packs the arrays of
a message into one flat array per dtype (see ``fixbn_flwr.transport.packing``), the mod unpacks them
on the client, and the reply is packed the same way. Strategies and clients of either generation see
named arrays, bit for bit.

In a simulation, messages never leave the machine. There ``flat_in_deployment`` returns the grid
unchanged, and the mod does nothing, because it only packs replies to packed messages. So there is
no option to set. Every client needs the mod. A client without it cannot read packed arrays; its
reply becomes an error reply that says so, even if the client noticed nothing.

A server of the older generation needs a main function to replace its grid:

    server = ServerApp(server_fn=server_fn)                              # as before
    app = ServerApp()

    @app.main()
    def main(grid, context):
        server(flat_in_deployment(grid), context)
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from flwr.app import ConfigRecord, Context, Error, Message
from flwr.serverapp import Grid

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.flower_compat import (
    ClientAppCallable,
    ErrorCode,
    error_reply,
    is_http_grid,
    make_message,
)
from fixbn_flwr.transport.bounded_grid import BoundedGrid
from fixbn_flwr.transport.delegating_grid import DelegatingGrid
from fixbn_flwr.transport.packing import Packer, is_packed, unpack

QUICKEST, SLOWEST = 0.1, 0.5  # shortest and longest pause between two polls, seconds
_SHARE = 0.05  # a pause lasts this share of the time waited so far, between the two limits

_WAS_UNPACKED = "fixbn-unpacked"  # the record that the mod adds to its replies to packed messages
_REMEDY = "add flat_arrays_mod of fixbn_flwr to its ClientApp, as the first of its mods"


def flat_in_deployment(grid: Grid) -> Grid:
    """Return a Grid that packs arrays, polls fast and bounds replies; in a simulation, the same.

    Examples:
        In a simulation there is nothing to pack:

        >>> from flwr.clientapp import ClientApp
        >>> from fixbn_flwr.testing import SerializingGrid
        >>> grid = SerializingGrid(ClientApp(), nodes=2)
        >>> flat_in_deployment(grid) is grid
        True

    Args:
        grid: The Grid that Flower passes to ``@app.main()``.

    Returns:
        A new Grid around it if it talks to a SuperLink, otherwise the Grid itself.
    """
    return PackedGrid(BoundedGrid(grid)) if is_http_grid(grid) else grid


class PackedGrid(DelegatingGrid):
    """A Grid that packs the arrays of messages and unpacks those of the replies.

    Error replies and unpacked replies are returned as they are. Two kinds of reply become an error
    reply of the same client, which strategies drop and log like any other: one whose packed arrays
    are damaged, and one to a packed message from a client without ``flat_arrays_mod``.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._packed: set[str] = set()  # ids of packed messages without a reply so far
        self._with_mod: set[int] = set()  # clients known to have the mod

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages with packed arrays. The caller's messages do not change."""
        packer = Packer()  # most strategies send all clients the same record
        contents = [(message.metadata, packer.pack(message.content)) for message in messages]
        message_ids = list(
            self._grid.push_messages(
                [make_message(metadata=metadata, content=content) for metadata, content in contents]
            )
        )
        # Flower returns an empty list if sending failed, or None for a single message that failed.
        for message_id, (_, content) in zip(message_ids, contents, strict=False):
            if message_id and is_packed(content):
                self._packed.add(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived, unpacked."""
        return [self._unpacked(reply) for reply in self._grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages and wait for their replies, as ``Grid.send_and_receive`` does.

        Flower's Grid polls every 3 seconds; this one polls after 0.1 to 0.5 seconds.
        """
        waiting = {message_id for message_id in self.push_messages(messages) if message_id}
        started = time.monotonic()
        replies: list[Message] = []
        while waiting:
            arrived = list(self.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            waited = time.monotonic() - started
            if timeout is not None and waited >= timeout:
                break
            if waiting:
                time.sleep(min(max(QUICKEST, _SHARE * waited), SLOWEST))
        return replies

    def _unpacked(self, reply: Message) -> Message:
        """Return a reply unpacked, or an error reply if its client could not read the message."""
        client, message_id = reply.metadata.src_node_id, reply.metadata.reply_to_message_id
        was_packed = message_id in self._packed
        self._packed.discard(message_id)
        if reply.has_error():
            raised = reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            if raised and was_packed and client not in self._with_mod:
                reason = f"(if it does not recognise its arrays: {_REMEDY}) {reply.error.reason}"
                reply.error = Error(reply.error.code, reason)
            return reply
        if reply.content.pop(_WAS_UNPACKED, None) is not None:
            self._with_mod.add(client)
        elif was_packed:
            reason = f"it cannot have read its message, whose arrays are packed: {_REMEDY}."
            return error_reply(reply.metadata, reason)
        if not is_packed(reply.content):
            return reply
        try:
            reply.content = unpack(reply.content)
        except ReplyError as error:
            return error_reply(reply.metadata, str(error))
        return reply


def flat_arrays_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Unpack the arrays of a packed message, call the client, and pack the arrays of its reply.

    The counterpart of ``flat_in_deployment`` on the client. A message that is not packed passes
    unchanged, so the mod does nothing in a simulation.

    Examples:
        >>> from flwr.clientapp import ClientApp
        >>> app = ClientApp(mods=[flat_arrays_mod])

    Raises:
        ReplyError: If the message is damaged. Flower turns this into an error reply.
    """
    if not message.has_content() or not is_packed(message.content):
        return call_next(message, context)
    message.content = unpack(message.content)
    reply = call_next(message, context)
    if reply.has_content():
        reply.content = Packer().pack(reply.content)
        reply.content[_WAS_UNPACKED] = ConfigRecord()
    return reply
