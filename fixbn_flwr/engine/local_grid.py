"""A Flower Grid whose clients run in worker processes of this machine.

The server app, the client app and the strategy are the same objects as in Flower's simulation, and
the same seed gives the same bits. The differences are inside: the workers are forked from a process
that has imported everything, arrays travel through shared memory, and a message that many clients
get is written once.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

import cloudpickle
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fixbn_flwr.engine.client_states import ClientStates, State
from fixbn_flwr.engine.message_board import MessageBoard
from fixbn_flwr.engine.records import join, split
from fixbn_flwr.engine.worker import Done, Packed, Task, WorkerSetup
from fixbn_flwr.engine.worker_pool import Worker, WorkerError
from fixbn_flwr.flower_compat import ErrorCode, Run, set_task_identity
from fixbn_flwr.log import logger

FIRST_NODE_ID = 1000


class LocalGrid(Grid):
    """A Grid over worker processes. Use it in a ``with`` block, which ends them.

    Args:
        load_app: Returns the ClientApp; called in each worker.
        nodes: The number of clients. Node ``FIRST_NODE_ID + i`` holds partition ``i``.
        workers: The number of clients that train at a time. Default: one per core.
        run_id: Flower's id of the run.
        run_config: The run config of all clients. Default: empty.
        prepare: Called here before the workers start; returns what each worker calls first.
            Default: nothing.
    """

    def __init__(
        self,
        load_app: Callable[[], ClientApp],
        nodes: int,
        *,
        workers: int | None = None,
        run_id: int = 1,
        run_config: Mapping[str, Any] | None = None,
        prepare: Callable[[], Callable[[], None]] | None = None,
    ) -> None:
        set_task_identity(run_id)
        self._load_app = load_app
        self._nodes = nodes
        self._count = min(workers or len(os.sched_getaffinity(0)), nodes)
        self._run_id = run_id
        self._run_config = dict(run_config or {})
        self._prepare = prepare or (lambda: _nothing)
        self._run = Run.create_empty(run_id)
        self._board = MessageBoard()
        self._states = ClientStates()
        self._seconds: dict[int, float] = {}  # each client's last task
        self._ids = itertools.count(1)
        self._waiting: deque[tuple[Message, Packed]] = deque()
        self._replies: dict[str, Message] = {}
        self._workers: list[Worker] = []
        self._changed = threading.Condition()
        self._starting = threading.Lock()
        self._failure: WorkerError | None = None
        self._closed = False
        self._wake_read, self._wake_write = os.pipe()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LocalGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_run(self, run: Run) -> None:
        """See ``Grid.set_run``."""
        self._run = run

    @property
    def run(self) -> Run:
        """See ``Grid.run``."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See ``Grid.create_message``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """See ``Grid.get_node_ids``."""
        return range(FIRST_NODE_ID, FIRST_NODE_ID + self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages, the slowest client first."""
        ids = []
        with self._changed:
            for message in messages:
                ids.append(f"message-{next(self._ids)}")
                message.metadata.__dict__["_message_id"] = ids[-1]
                self._waiting.append((message, self._board.write(*split(message))))
            self._waiting = deque(sorted(self._waiting, key=self._expected_seconds, reverse=True))
        if ids:
            self._start()
            self._wake()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have arrived."""
        with self._changed:
            self._check()
            return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for their replies."""
        expected = set(self.push_messages(messages))
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while expected - self._replies.keys():
                self._check()
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
        return self.pull_messages(expected)

    def close(self) -> None:
        """End all workers."""
        with self._changed:
            self._closed = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._states.close()
        self._board.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _expected_seconds(self, waiting: tuple[Message, Packed]) -> float:
        """Return how long a client is expected to take; longest for one that is new."""
        return self._seconds.get(waiting[0].metadata.dst_node_id, float("inf"))

    def _start(self) -> None:
        """Start the workers, with the first message. The older generation's have many threads."""
        with self._starting:
            if self._thread is not None:
                return
            load_app = cloudpickle.dumps(self._load_app)
            setup = WorkerSetup(load_app, self._prepare(), self._run_id, self._run_config)
            self._setup = setup
            self._workers = [Worker(setup, self._board.memory) for _ in range(self._count)]
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()

    def _wake(self) -> None:
        os.write(self._wake_write, b"x")

    def _serve(self) -> None:
        """Give tasks to workers and take their results, until the grid is closed."""
        while True:
            connections = {worker.connection: worker for worker in self._workers}
            ready = wait([*connections, self._wake_read])
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            with self._changed:
                if self._closed:
                    return
                for connection in ready:
                    if connection is not self._wake_read:
                        self._receive(connections[connection])  # type: ignore[index]
                self._assign()
                self._changed.notify_all()

    def _receive(self, worker: Worker) -> None:
        """Take what a worker sent, or replace it if it has ended."""
        try:
            done = worker.receive()
        except WorkerError as error:
            self._failure = error
        except EOFError:
            self._replace(worker)
        else:
            if done is not None:
                self._finish(worker, done)

    def _finish(self, worker: Worker, done: Done) -> None:
        message, started = worker.task
        worker.task = None
        client = message.metadata.dst_node_id
        self._seconds[client] = time.monotonic() - started
        if done.log:
            logger.error("client %s raised an exception\n%s", client, done.log)
        if done.state is not None:
            large = [worker.outbox.read(place) for place in done.state.places]
            self._states.put(client, State(done.state.header, large))
        reply = join(done.reply.header, map(worker.outbox.read, done.reply.places))
        self._reply(message, reply)

    def _replace(self, worker: Worker) -> None:
        """Answer for a worker that has ended, and start another one."""
        task, name = worker.task, worker.name
        ended = worker.end()
        if not worker.ready:
            self._failure = WorkerError(f"a worker process ended while it started ({ended}).")
            self._workers.remove(worker)
            return
        self._workers[self._workers.index(worker)] = Worker(self._setup, self._board.memory)
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
        reply.metadata.__dict__["_message_id"] = f"reply-to-{message.metadata.message_id}"
        self._replies[message.metadata.message_id] = reply
        self._board.release()

    def _assign(self) -> None:
        """Give waiting messages to idle workers; a client has one task at a time."""
        busy = {w.task[0].metadata.dst_node_id for w in self._workers if w.task is not None}
        for worker in self._workers:
            if worker.task is None and worker.ready:
                chosen = next(
                    (w for w in self._waiting if w[0].metadata.dst_node_id not in busy), None
                )
                if chosen is None:
                    return
                self._waiting.remove(chosen)
                busy.add(chosen[0].metadata.dst_node_id)
                self._send(worker, *chosen)

    def _send(self, worker: Worker, message: Message, packed: Packed) -> None:
        client = message.metadata.dst_node_id
        state = self._states.get(client)
        inbox = None
        if state is not None:
            inbox = Packed(state.header, worker.inbox.write(state.large))
        config = {"partition-id": client - FIRST_NODE_ID, "num-partitions": self._nodes}
        worker.task = (message, time.monotonic())
        with suppress(OSError):  # it has ended, which the next wait reports
            worker.send(Task(packed, inbox, client, config))


def _nothing() -> None:
    """Prepare nothing."""
