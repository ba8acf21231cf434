"""Few flat arrays on the wire and quick polling, for federations of real machines.

    grid = flat_in_deployment(grid)                                      # server, in @app.main()
    app = ClientApp(client_fn=client_fn, mods=[flat_arrays_mod])         # client, first of its mods
    @app.train(mods=[flat_arrays_mod])                                   # client, Message API

Between machines Flower moves each array of a message as two objects or more, each by requests of
its own on every hop, and looks for replies every 3 seconds: 122 arrays of 45 MB take 24 to 32
seconds there and back, four flat ones 5 to 7. So the server packs the arrays of a message end to
end, one flat array a dtype (see ``fixbn_flwr.flat``), and the mod unpacks them on arrival; the
reply goes back the same way. Strategies and clients of either generation see named arrays, bit for
bit.

A simulation passes whole messages within one machine: there ``flat_in_deployment`` returns the grid
as it was, and the mod, which packs only what answers a packed message, does nothing. So there is no
option to set. A client without the mod cannot read what it is sent: add it to all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from flwr.app import Context, Error, Message
from flwr.app.message.message import make_message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.superlink.grid import HttpGrid

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.flat import Packer, is_packed, unpack
from fixbn_flwr.grid import GridAround

QUICKEST, SLOWEST = 0.1, 1.0  # seconds between two looks for replies
_SHARE = 0.05  # of the time already waited that the next pause takes, between the two


def flat_in_deployment(grid: Grid) -> Grid:
    """Return a grid that packs arrays and polls quickly; in a simulation, the grid itself."""
    return FlatGrid(grid) if isinstance(grid, HttpGrid) else grid


class FlatGrid(GridAround):
    """A Grid that sends the arrays of messages packed, and unpacks those of the replies.

    Replies come as they are if they are errors or not packed. A packed one that is damaged becomes
    an error reply of the same client: strategies drop and name it, as any other.
    """

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages with their arrays packed; the caller's messages keep theirs."""
        packer = Packer()  # a strategy mostly sends all clients the same arrays
        return self._grid.push_messages(
            [
                make_message(metadata=message.metadata, content=packer.pack(message.content))
                for message in messages
            ]
        )

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived, unpacked."""
        return [_unpacked(reply) for reply in self._grid.pull_messages(message_ids)]

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
    return reply


def _unpacked(reply: Message) -> Message:
    if not reply.has_content() or not is_packed(reply.content):
        return reply
    try:
        reply.content = unpack(reply.content)
    except ReplyError as error:
        failure = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error))
        return make_message(metadata=reply.metadata, error=failure)
    return reply
