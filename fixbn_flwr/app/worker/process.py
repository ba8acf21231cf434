"""The worker process: it keeps torch, data and model loaded between a node's messages.

``fixbn_flwr.app.worker.forwarder`` starts it as `python -m fixbn_flwr.app.worker.process` with a
listening socket; its docstring describes what they exchange. The worker ends when

- no message has arrived for some time,
- its SuperNode has ended,
- a message is for other code or another run, whose data may have changed,
- the message it works on is cancelled (`flwr stop`): Flower has then ended the forwarder.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from flwr.app import Error, Message
from flwr.clientapp import ClientApp

from fixbn_flwr.app.client_app import app
from fixbn_flwr.app.worker.forwarder import MAX_BYTES, NodeProcess, started_at
from fixbn_flwr.flower_compat import (
    ErrorCode,
    context_from_bytes,
    context_to_bytes,
    message_from_bytes,
    message_to_bytes,
)
from fixbn_flwr.log import logger

_POLL = 0.5  # seconds between two checks of the node and the connection


class Worker:
    """Answers the messages that arrive on a socket, one after the other.

    Args:
        app: The client app.
        listener: A listening Unix socket.
        path: Its path.
        node: The node; the worker ends with it.
        idle: Seconds without a message after which the worker ends.
        task: The run and the code that it is for, as the forwarder names them.
    """

    def __init__(
        self,
        app: ClientApp,
        listener: socket.socket,
        path: Path,
        node: NodeProcess,
        idle: float,
        task: str,
    ) -> None:
        self._app = app
        self._listener = listener
        self._node = node
        self._idle = idle
        self._task = task
        self._path = path
        self._inode = path.stat().st_ino
        self._busy: Connection[Any, Any] | None = None  # with the message in work

    def serve(self) -> None:
        """Answer messages until the worker has a reason to end."""
        threading.Thread(target=self._watch, daemon=True).start()
        self._listener.settimeout(self._idle)
        while True:
            try:
                accepted, _ = self._listener.accept()
            except TimeoutError:
                self._end(f"no message for {self._idle:.0f} s")
            connection: Connection[Any, Any] = Connection(accepted.detach())
            with connection:
                try:
                    self._answer(connection)
                except (OSError, EOFError) as error:
                    logger.warning("a message was cancelled (%r)", error)

    def _answer(self, connection: Connection[Any, Any]) -> None:
        task = connection.recv_bytes(MAX_BYTES)
        if task.decode() != self._task:
            self._end(f"it is for {self._task}, and the message is for {task.decode()}")
        connection.send_bytes(task)
        message = message_from_bytes(connection.recv_bytes(MAX_BYTES))
        context = context_from_bytes(connection.recv_bytes(MAX_BYTES))
        logger.info("worker %s answers: %s", os.getpid(), message.metadata.message_type)
        self._busy = connection
        try:
            reply = self._app(message, context)
        except Exception as error:
            logger.exception("the client app raised an exception")
            reason = f"{type(error)}:<'{error}'>"  # as Flower's process writes it
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        self._busy = None
        sys.stdout.flush()  # the client's output, into the node's log
        connection.send_bytes(message_to_bytes(reply))
        connection.send_bytes(context_to_bytes(context))

    def _watch(self) -> None:
        while True:
            time.sleep(_POLL)
            if started_at(self._node.process) != self._node.started:
                self._end("the SuperNode has ended")
            if self._is_cancelled():
                self._end("its message was cancelled")

    def _is_cancelled(self) -> bool:
        """Return whether the forwarder of the message in work has closed the connection."""
        connection = self._busy
        if connection is None:
            return False
        try:
            closed = connection.poll()  # the forwarder has nothing more to send: it is end of file
        except OSError:  # the main thread has closed it
            return False
        return closed and self._busy is connection

    def _end(self, why: str) -> NoReturn:
        """End this process, from any thread, also during training."""
        logger.info("worker %s ends: %s", os.getpid(), why)
        # While the socket still listens: afterwards a new worker may have its own at this path.
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        sys.stdout.flush()
        os._exit(0)


def main() -> None:
    """Serve on the inherited socket that the command line names, for a node and a task."""
    listener, path, process, started, idle, task = sys.argv[1:]
    with socket.socket(fileno=int(listener)) as inherited:
        node = NodeProcess(int(process), int(started))
        Worker(app, inherited, Path(path), node, float(idle), task).serve()


if __name__ == "__main__":
    main()
