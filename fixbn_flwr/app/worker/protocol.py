"""What forwarder and worker say to each other on their socket: frames, each after its length.

    forwarder → worker   which run the message is for, and the directory of its code
    worker → forwarder   the same, as soon as it is ready; a worker for others ends instead
    forwarder → worker   message, context
    worker → forwarder   reply, context

Messages and contexts are Flower's protocol buffers. The largest that those can be, and a frame so
too, is 2 GiB.
"""

from __future__ import annotations

import socket

from flwr.app import Context, Message
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage

_LENGTH = 8  # bytes, the first one the most significant
_LARGEST = 2**31


def send_frame(connection: socket.socket, content: bytes) -> None:
    """Send one frame.

    Raises:
        OSError: the other process is gone.
    """
    connection.sendall(len(content).to_bytes(_LENGTH, "big"))
    connection.sendall(content)


def receive_frame(connection: socket.socket) -> bytes:
    """Wait for one frame.

    Raises:
        ConnectionAbortedError: it was closed instead, or in the middle.
        OSError: it broke otherwise.
    """
    length = int.from_bytes(_receive(connection, _LENGTH), "big")
    if length > _LARGEST:
        raise ConnectionAbortedError(
            f"a frame of {length} bytes was announced, more than {_LARGEST}"
        )
    return _receive(connection, length)


def send_pair(connection: socket.socket, message: Message, context: Context) -> None:
    """Send a message and a context.

    Raises:
        OSError: the other process is gone.
    """
    send_frame(connection, message_to_proto(message).SerializeToString())
    send_frame(connection, context_to_proto(context).SerializeToString())


def receive_pair(connection: socket.socket) -> tuple[Message, Context]:
    """Wait for a message and a context.

    Raises:
        ConnectionAbortedError: the connection was closed instead.
        OSError: it broke otherwise.
    """
    message, context = ProtoMessage(), ProtoContext()
    message.ParseFromString(receive_frame(connection))
    context.ParseFromString(receive_frame(connection))
    return message_from_proto(message), context_from_proto(context)


def _receive(connection: socket.socket, length: int) -> bytes:
    content = bytearray(length)
    view, received = memoryview(content), 0
    while received < length:
        count = connection.recv_into(view[received:])
        if not count:
            raise ConnectionAbortedError(f"closed after {received} of {length} bytes")
        received += count
    return bytes(content)
