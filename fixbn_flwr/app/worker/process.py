"""The process that stays alive on a node, with torch, data and model loaded, between messages.

``fixbn_flwr.app.worker.forwarder`` starts it, as `python -m fixbn_flwr.app.worker.process` with a listening
socket, and talks to it in ``fixbn_flwr.app.worker.protocol``. It ends by itself when no message has come for
some time, when its node is gone, when a message is for other code or another run (whose data may
have changed meanwhile), and when one that it works on is taken back (`flwr stop`): Flower has ended
the process that waits for the reply then.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import NoReturn

from flwr.app import Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fixbn_flwr.app.client_app import app
from fixbn_flwr.app.worker.forwarder import NodeProcess, started_at
from fixbn_flwr.app.worker.protocol import receive_frame, receive_pair, send_frame, send_pair

_LOOK = 0.5  # seconds between two looks at the node and the connection

_logger = logging.getLogger("flwr.fixbn")


class Worker:
    """Answers the messages that come through a socket, one after the other.

    Args:
        app: the client app.
        listener: a Unix socket that listens.
        node: ends this process when it is gone.
        idle: seconds without a message after which it ends.
        task: which code and run it is for, as forwarders say it.
    """

    def __init__(
        self,
        app: ClientApp,
        listener: socket.socket,
        node: NodeProcess,
        idle: float,
        task: str,
    ) -> None:
        self._app = app
        self._listener = listener
        self._node = node
        self._idle = idle
        self._task = task
        self._socket = os.stat(listener.getsockname()).st_ino
        self._busy: socket.socket | None = None

    def serve(self) -> None:
        """Answer messages until there is reason to end."""
        threading.Thread(target=self._watch, daemon=True).start()
        self._listener.settimeout(self._idle)
        while True:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                self._end(f"no message for {self._idle:.0f} s")
            with connection:
                connection.settimeout(None)
                try:
                    self._answer(connection)
                except OSError as error:
                    _logger.warning("a message was taken back (%s)", error)

    def _answer(self, connection: socket.socket) -> None:
        task = receive_frame(connection)
        if task.decode() != self._task:
            self._end(f"messages are for {task.decode()}, it is for {self._task}")
        send_frame(connection, task)
        message, context = receive_pair(connection)
        _logger.info("worker %s answers: %s", os.getpid(), message.metadata.message_type)
        self._busy = connection
        try:
            reply = self._app(message, context)
        except Exception as error:
            _logger.exception("the client app raised an exception")
            # In the words of the process that this one stands in for.
            reason = f"{type(error)}:<'{error}'>"
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        self._busy = None
        sys.stdout.flush()  # what the client has printed, into the node's log
        send_pair(connection, reply, context)

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK)
            if started_at(self._node.process) != self._node.started:
                self._end("the SuperNode is gone")
            busy = self._busy  # the main thread may end the message meanwhile
            if busy is not None and _closed(busy):
                self._end("the message in work was taken back")

    def _end(self, why: str) -> NoReturn:
        """End this process, from whatever thread, also out of the middle of a training."""
        _logger.info("worker %s ends: %s", os.getpid(), why)
        # While the socket still listens: once it does not, another may stand in its place.
        with suppress(FileNotFoundError):
            path = self._listener.getsockname()
            if os.stat(path).st_ino == self._socket:
                os.unlink(path)
        sys.stdout.flush()
        os._exit(0)


def _closed(connection: socket.socket) -> bool:
    """Tell whether the other side of a connection, which has no more to say, has hung up."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def main() -> None:
    """Serve on the socket that was handed down: its number, the node's two, idle time and task."""
    listener, process, started, idle, task = sys.argv[1:]
    with socket.socket(fileno=int(listener)) as inherited:
        node = NodeProcess(int(process), int(started))
        Worker(app, inherited, node, float(idle), task).serve()


if __name__ == "__main__":
    main()
