"""Start, use and end worker processes."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerProcess
from typing import Any

from fixbn_flwr.engine.fork_server import start_fork_server
from fixbn_flwr.engine.shared_memory import SharedMemory
from fixbn_flwr.engine.worker import Done, Task, WorkerSetup, serve
from fixbn_flwr.errors import WorkerError


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Keep multiprocessing from running the user's script again in the worker."""
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {
        name: vars(main).pop(name) for name in ("__spec__", "__file__") if name in vars(main)
    }
    main.__spec__ = None
    try:
        yield
    finally:
        vars(main).update(hidden)


class Worker:
    """A worker process and the memory that it shares with this one.

    Args:
        setup: What the worker runs.
        number: The worker's number, counted from 0.
        board: The memory with the messages of a round.

    Attributes:
        number: The worker's number.
        connection: The connection to it. It can be read when the worker is ready, has finished a
            task, or has ended.
        inbox: The memory that this process writes.
        outbox: The memory that the worker writes.
        task: The task that it works on, for the owner's use; None if it has none.
        ready: Whether it has loaded the app.
    """

    def __init__(self, setup: WorkerSetup, number: int, board: SharedMemory) -> None:
        self.number = number
        self.inbox, self.outbox = SharedMemory(), SharedMemory()
        self.task: Any = None
        self.ready = False
        context = multiprocessing.get_context("forkserver")
        self.connection, other = context.Pipe()
        start_fork_server()
        self._process = ForkServerProcess(
            target=serve, args=(setup, number, other, board, self.inbox, self.outbox)
        )
        with _without_main_module():
            self._process.start()
        other.close()

    @property
    def name(self) -> str:
        """The process's id, for the log."""
        return f"worker {self._process.pid}"

    def send(self, task: Task) -> None:
        """Send a task. Its state is in the inbox."""
        self.connection.send_bytes(pickle.dumps(task))

    def receive(self) -> Done | None:
        """Return a finished task's result; None for the message that the worker is ready.

        Raises:
            EOFError: If the worker has ended.
            WorkerError: If it could not load the app.
        """
        try:
            received = pickle.loads(self.connection.recv_bytes())
        except OSError as error:
            raise EOFError from error
        if self.ready:
            done: Done = received
            return done
        if received is not None:
            raise WorkerError(f"a worker process cannot start:\n{received}")
        self.ready = True
        return None

    def end(self) -> str:
        """Kill the worker if it has not ended, free its memory, and return how it ended."""
        self._process.kill()
        self._process.join()
        code = self._process.exitcode or 0
        for resource in (self.connection, self.inbox, self.outbox):
            with suppress(OSError):
                resource.close()
        self._process.close()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
