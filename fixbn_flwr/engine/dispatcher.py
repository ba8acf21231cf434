"""Give messages to worker processes and take their replies, in a thread of the server process.

The slowest clients of their last messages start first, and a client works on one message at a time.
A worker that ends is one failed client, and is replaced.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import Any

from flwr.app import Error, Message, RecordDict

from fixbn_flwr.engine.client_states import ClientStates, State
from fixbn_flwr.engine.message_board import MessageBoard
from fixbn_flwr.engine.records import join, split
from fixbn_flwr.engine.worker import Done, Packed, Task, WorkerSetup
from fixbn_flwr.engine.worker_pool import Worker
from fixbn_flwr.errors import WorkerError
from fixbn_flwr.flower_compat import ErrorCode
from fixbn_flwr.log import logger

_STARTS = 3  # of workers that may fail in a row: memory may be short for a moment


class Dispatcher:
    """Runs the messages of a federation on its workers, until it is closed.

    Args:
        setup: What the workers run.
        workers: The number of workers.
        node_config: Returns a client's node config.
        on_reply: Called with each message and its reply.
        on_failure: Called with the error if no worker can run the app.
    """

    def __init__(
        self,
        setup: WorkerSetup,
        workers: int,
        *,
        node_config: Callable[[int], dict[str, int]],
        on_reply: Callable[[Message, Message], None],
        on_failure: Callable[[WorkerError], None],
    ) -> None:
        self._setup = setup
        self._node_config = node_config
        self._on_reply = on_reply
        self._on_failure = on_failure
        self._board = MessageBoard()
        self._states = ClientStates()
        # Of each client's last message of a type: training and evaluation take different times.
        self._seconds: dict[tuple[int, str], float] = {}
        self._failed_starts = 0  # in a row
        self._waiting: list[tuple[Message, Packed]] = []
        self._changes = threading.Lock()  # of the board and the waiting messages
        self._closed = False
        self._wake_read, self._wake_write = os.pipe()
        self._workers = [Worker(setup, number, self._board.memory) for number in range(workers)]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, messages: Sequence[Message]) -> None:
        """Queue messages."""
        with self._changes:
            self._waiting += [(m, self._board.write(*split(m))) for m in messages]
            self._waiting.sort(key=self._expected_seconds, reverse=True)
        self._wake()

    def cancel(self, message_ids: Collection[str]) -> None:
        """Forget those of these messages that no worker has started."""
        with self._changes:
            kept = [w for w in self._waiting if w[0].metadata.message_id not in message_ids]
            for _ in range(len(self._waiting) - len(kept)):
                self._board.release()
            self._waiting = kept

    def states(self) -> Iterator[RecordDict]:
        """Yield the state of each client that has one. Call it while no message is waiting."""
        for client in self._states.clients():
            state = self._states.get(client)
            assert state is not None  # it is among the clients
            yield join(state.header, map(memoryview, state.large))

    def close(self) -> None:
        """Kill the workers and free their memory."""
        self._closed = True
        self._wake()
        self._thread.join()
        for worker in self._workers:
            worker.end()
        self._states.close()
        self._board.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _expected_seconds(self, waiting: tuple[Message, Packed]) -> float:
        """Return how long a client is expected to take; longest for one that is new."""
        return self._seconds.get(_work_of(waiting[0]), float("inf"))

    def _wake(self) -> None:
        os.write(self._wake_write, b"x")

    def _run(self) -> None:
        """Serve, and report an error to the run, which would wait for its replies."""
        try:
            self._serve()
        except WorkerError as error:
            self._on_failure(error)
        except Exception as error:
            logger.exception("the thread that serves the workers failed")
            self._on_failure(WorkerError(f"the engine failed: {error!r}"))

    def _serve(self) -> None:
        """Give tasks to workers and take their results, until the dispatcher is closed."""
        while True:
            workers: dict[Any, Worker] = {worker.connection: worker for worker in self._workers}
            for ready in wait([*workers, self._wake_read]):
                if ready == self._wake_read:
                    os.read(self._wake_read, 4096)
                else:
                    self._receive(workers[ready])
            if self._closed:
                return
            with self._changes:
                self._assign()

    def _receive(self, worker: Worker) -> None:
        """Take what a worker sent, or replace it if it has ended."""
        try:
            done = worker.receive()
        except WorkerError as error:
            self._on_failure(error)
        except EOFError:
            self._replace(worker)
        else:
            if done is None:
                self._failed_starts = 0
            else:
                self._finish(worker, done)

    def _finish(self, worker: Worker, done: Done) -> None:
        message, started = worker.task
        worker.task = None
        client = message.metadata.dst_node_id
        self._seconds[_work_of(message)] = time.monotonic() - started
        if done.log:
            logger.error("client %s raised an exception\n%s", client, done.log)
        if done.state is not None:
            large = [worker.outbox.read(place) for place in done.state.places]
            with _disk():
                self._states.put(client, State(done.state.header, large))
        self._reply(message, join(done.reply.header, map(worker.outbox.read, done.reply.places)))

    def _replace(self, worker: Worker) -> None:
        """Answer for a worker that has ended, and start another one."""
        task, name, was_ready = worker.task, worker.name, worker.ready
        ended = worker.end()
        self._workers.remove(worker)
        self._failed_starts += not was_ready
        if self._failed_starts >= _STARTS:
            text = (
                f"{_STARTS} worker processes in a row ended while they started ({ended}): see "
                "their output above, or use fewer workers if memory is short."
            )
            self._on_failure(WorkerError(text))
            return
        self._workers.append(Worker(self._setup, worker.number, self._board.memory))
        if task is not None:
            message, _ = task
            reason = (
                f"its process ended ({ended}): it was killed, ran out of memory or crashed. "
                "Another one takes its place."
            )
            logger.warning("client %s, %s: %s", message.metadata.dst_node_id, name, reason)
            error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
            self._reply(message, Message(error, reply_to=message))

    def _reply(self, message: Message, reply: Message) -> None:
        with self._changes:
            self._board.release()
        self._on_reply(message, reply)

    def _assign(self) -> None:
        """Give waiting messages to idle workers; a client has one task at a time."""
        busy = {w.task[0].metadata.dst_node_id for w in self._workers if w.task is not None}
        for worker in self._workers:
            if worker.task is None and worker.ready:
                free = (w for w in self._waiting if w[0].metadata.dst_node_id not in busy)
                chosen = next(free, None)
                if chosen is None:
                    return
                self._waiting.remove(chosen)
                busy.add(chosen[0].metadata.dst_node_id)
                self._send(worker, *chosen)

    def _send(self, worker: Worker, message: Message, packed: Packed) -> None:
        client, inbox = message.metadata.dst_node_id, None
        with _disk():
            state = self._states.get(client)
        if state is not None:
            inbox = Packed(state.header, worker.inbox.write(state.large))
        worker.task = (message, time.monotonic())
        with suppress(OSError):  # it has ended, which the next wait reports
            worker.send(Task(packed, inbox, client, self._node_config(client)))


def _work_of(message: Message) -> tuple[int, str]:
    return message.metadata.dst_node_id, message.metadata.message_type


@contextmanager
def _disk() -> Iterator[None]:
    """Turn an error of the disk in the block into a WorkerError with the remedy."""
    try:
        yield
    except OSError as error:
        raise WorkerError(
            f"the clients' states cannot be kept ({error}): set TMPDIR to a larger disk."
        ) from error
