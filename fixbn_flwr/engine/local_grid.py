"""A Flower Grid whose clients run in worker processes of this machine.

The server app, the client app and the strategy are the same objects as in Flower's simulation, and
the same seed gives the same bits. The differences are inside: the workers are forked from a process
that has imported everything, arrays travel through shared memory, and a message that many clients
get is written once.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cloudpickle
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fixbn_flwr.engine.dispatcher import Dispatcher
from fixbn_flwr.engine.simulated_grid import SimulatedGrid
from fixbn_flwr.engine.worker import WorkerSetup
from fixbn_flwr.errors import WorkerError


class LocalGrid(SimulatedGrid):
    """A Grid over worker processes. Use it in a ``with`` block, which ends them.

    Args:
        load_app: Returns the ClientApp; called in each worker.
        nodes: The number of clients. Node ``FIRST_NODE_ID + i`` holds partition ``i``.
        workers: The number of clients that train at a time. Default: one per core.
        run_id: Flower's id of the run. Default: random, as Flower chooses it.
        run_config: The run config of all clients. Default: empty.
        prepare: Called here before the workers start; returns what each worker calls first, with
            its number. Default: nothing.
    """

    def __init__(
        self,
        load_app: Callable[[], ClientApp],
        nodes: int,
        *,
        workers: int | None = None,
        run_id: int | None = None,
        run_config: Mapping[str, Any] | None = None,
        prepare: Callable[[], Callable[[int], None]] | None = None,
    ) -> None:
        super().__init__(nodes, secrets.randbits(63) if run_id is None else run_id)
        self._load_app = load_app
        self._workers = min(workers or len(os.sched_getaffinity(0)), nodes)
        self._run_config = dict(run_config or {})
        self._prepare = prepare or (lambda: _nothing)
        self._ids = itertools.count(1)
        self._pending: set[str] = set()  # ids of messages whose replies are awaited
        self._replies: dict[str, Message] = {}
        self._failure: WorkerError | None = None
        self._changed = threading.Condition()
        self._dispatcher: Dispatcher | None = None

    def __enter__(self) -> LocalGrid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages. The first ones start the workers."""
        messages, ids = list(messages), []
        with self._changed:  # the older generation sends each message in a thread
            for message in messages:
                ids.append(f"message-{next(self._ids)}")
                message.metadata.__dict__["_message_id"] = ids[-1]
            self._pending.update(ids)
            if messages and self._dispatcher is None:
                self._dispatcher = self._start()
        if self._dispatcher is not None and messages:
            self._dispatcher.submit(messages)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have arrived."""
        with self._changed:
            self._check()
            return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for their replies; forget those that come after the timeout."""
        # In the order of the messages: a strategy may sum in the order of the replies.
        expected = list(self.push_messages(messages))
        awaited = set(expected)
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not awaited.isdisjoint(self._pending):
                self._check()
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            late = awaited & self._pending
            self._pending -= late
        if self._dispatcher is not None and late:
            self._dispatcher.cancel(late)
        return self.pull_messages(expected)

    def states(self) -> Iterable[RecordDict]:
        """Return the ``context.state`` of each client that has one, after the last round."""
        return [] if self._dispatcher is None else self._dispatcher.states()

    def close(self) -> None:
        """End all workers."""
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._dispatcher = None

    def _start(self) -> Dispatcher:
        app, run = cloudpickle.dumps(self._load_app), self._run.run_id
        return Dispatcher(
            WorkerSetup(app, self._prepare(), run, self._run_config),
            self._workers,
            node_config=self._config_of,
            on_reply=self._on_reply,
            on_failure=self._on_failure,
        )

    def _on_reply(self, message: Message, reply: Message) -> None:
        reply.metadata.__dict__["_message_id"] = f"reply-to-{message.metadata.message_id}"
        message_id = message.metadata.message_id
        with self._changed:
            if message_id in self._pending:
                self._pending.remove(message_id)
                self._replies[message_id] = reply
                self._changed.notify_all()

    def _on_failure(self, error: WorkerError) -> None:
        with self._changed:
            self._failure = self._failure or error  # the first one is the cause
            self._changed.notify_all()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


def _nothing(_: int) -> None:
    """Prepare nothing."""
