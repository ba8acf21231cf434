"""Few flat arrays on the wire and quick polling, for federations of real machines.

    grid = flat_in_deployment(grid)                                      # server, in @app.main()
    app = ClientApp(client_fn=client_fn, mods=[flat_arrays_mod])         # client, first of its mods
    @app.train(mods=[flat_arrays_mod])                                   # client, Message API

Between machines Flower moves each array of a message as two objects or more, each by requests of
its own on every hop, and looks for replies every 3 seconds: 122 arrays of 45 MB take 24 to 32
seconds there and back, four flat ones 5 to 7. So the server packs the arrays of a message end to
end, one flat array a dtype (see ``fixbn_flwr.transport.packing``), and the mod unpacks them on
arrival; the reply goes back the same way. Strategies and clients of either generation see named
arrays, bit for bit.

A simulation passes whole messages within one machine: there ``flat_in_deployment`` returns the grid
as it was, and the mod, which packs only what answers a packed message, does nothing. So there is no
option to set. A client without the mod cannot read what it is sent, so all need it: what one
without it answers becomes an error reply that says so, even where the client did not notice.

A server of the older generation gets its grid in a main of its own:

    older = ServerApp(server_fn=server_fn)                               # as it was
    app = ServerApp()

    @app.main()
    def main(grid, context):
        older(flat_in_deployment(grid), context)
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from flwr.app import ConfigRecord, Context, Error, Message
from flwr.serverapp import Grid

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.flower_compat import ClientAppCallable, ErrorCode, is_http_grid, make_message
from fixbn_flwr.transport.bounded_grid import BoundedGrid
from fixbn_flwr.transport.delegating_grid import GridAround, error_reply
from fixbn_flwr.transport.packing import Packer, is_packed, unpack

QUICKEST, SLOWEST = 0.1, 0.5  # seconds between two looks for replies
_SHARE = 0.05  # of the time already waited that the next pause takes, between the two

_WAS_UNPACKED = "fixbn-unpacked"  # a record of the mod's in each reply to a packed message
_REMEDY = "add flat_arrays_mod of fixbn_flwr to its ClientApp, first of the mods"


def flat_in_deployment(grid: Grid) -> Grid:
    """Return a grid that packs arrays, polls quickly and bounds replies; or itself, simulated."""
    return FlatGrid(BoundedGrid(grid)) if is_http_grid(grid) else grid


class FlatGrid(GridAround):
    """A Grid that sends the arrays of messages packed, and unpacks those of the replies.

    Replies come as they are if they are errors or not packed. A packed one that is damaged becomes
    an error reply of the same client, and so does that of a client without ``flat_arrays_mod`` to a
    packed message: strategies drop and name it, as any other.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._packed: set[str] = set()  # messages that went out so, and have no reply yet
        self._with_mod: set[int] = set()  # clients that are known to unpack them

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages with their arrays packed; the caller's messages keep theirs."""
        packer = Packer()  # a strategy mostly sends all clients the same arrays
        contents = [(message.metadata, packer.pack(message.content)) for message in messages]
        message_ids = list(
            self._grid.push_messages(
                [make_message(metadata=metadata, content=content) for metadata, content in contents]
            )
        )
        # Flower gives no numbers at all where it could not send, or None for one message of many.
        for message_id, (_, content) in zip(message_ids, contents, strict=False):
            if message_id and is_packed(content):
                self._packed.add(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived, unpacked."""
        return [self._arrived(reply) for reply in self._grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Exchange messages for replies, as ``Grid.send_and_receive`` does, without its pauses."""
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

    def _arrived(self, reply: Message) -> Message:
        """Return a reply unpacked, or as an error if its client could not read its message."""
        client, asked = reply.metadata.src_node_id, reply.metadata.reply_to_message_id
        was_packed = asked in self._packed
        self._packed.discard(asked)
        if reply.has_error():
            raised = reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            if raised and was_packed and client not in self._with_mod:
                reason = f"(if it does not know its arrays: {_REMEDY}) {reply.error.reason}"
                reply.error = Error(reply.error.code, reason)
            return reply
        if reply.content.pop(_WAS_UNPACKED, None) is not None:
            self._with_mod.add(client)
        elif was_packed:
            reason = f"it cannot have read the arrays, which come packed: {_REMEDY}."
            return error_reply(reply.metadata, reason)
        if not is_packed(reply.content):
            return reply
        try:
            reply.content = unpack(reply.content)
        except ReplyError as error:
            return error_reply(reply.metadata, str(error))
        return reply


def flat_arrays_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Unpack the arrays of a message that arrived packed, and pack those of its reply.

    Raises:
        ReplyError: the message is damaged. Flower turns it into an error reply.
    """
    if not message.has_content() or not is_packed(message.content):
        return call_next(message, context)
    message.content = unpack(message.content)
    reply = call_next(message, context)
    if reply.has_content():
        reply.content = Packer().pack(reply.content)
        reply.content[_WAS_UNPACKED] = ConfigRecord()
    return reply
