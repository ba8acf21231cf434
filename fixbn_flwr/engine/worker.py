"""The worker process: it runs the ClientApp for one message after the other.

The server process sends a task as a :class:`Task` and gets a :class:`Done`, both through a
connection. The arrays are in shared memory:

- ``board``, written by the server: the contents of all messages of a round, each array once;
- ``inbox``, written by the server: the state of the task's client;
- ``outbox``, written by the worker: its reply and the client's new state.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fixbn_flwr.engine.records import join, split
from fixbn_flwr.engine.shared_memory import Place, SharedMemory
from fixbn_flwr.flower_compat import ErrorCode, set_task_identity

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Packed:
    """A message or state whose large byte strings are in shared memory."""

    header: bytes
    places: list[Place]


@dataclass(frozen=True)
class Task:
    """A message for a client, and what its context needs.

    Attributes:
        message: The message, on the board.
        state: The client's state, in the inbox; None for an empty one.
        node_id: Flower's id of the client.
        node_config: Its node config.
    """

    message: Packed
    state: Packed | None
    node_id: int
    node_config: dict[str, int]


@dataclass(frozen=True)
class Done:
    """A worker's reply.

    Attributes:
        reply: The reply message, in the outbox.
        state: The client's new state, in the outbox; None if it stays as it was.
        log: The traceback if the ClientApp raised an exception; otherwise empty.
    """

    reply: Packed
    state: Packed | None
    log: str = ""


@dataclass(frozen=True)
class WorkerSetup:
    """What every worker of a federation needs.

    Attributes:
        load_app: A function that returns the ClientApp, by ``cloudpickle``: it may be defined
            anywhere.
        prepare: Called once in each worker, before the app is loaded, with the worker's number,
            counted from 0. One that takes the place of another has the other's number.
        run_id: Flower's id of the run.
        run_config: The run config of all clients.
    """

    load_app: bytes
    prepare: Callable[[int], None]
    run_id: int
    run_config: dict[str, Any]


def serve(
    setup: WorkerSetup, number: int, connection: Connection[Any, Any], *memory: SharedMemory
) -> None:
    """Answer tasks until the connection ends, or the fork server, which is the parent process.

    Args:
        setup: What to run.
        number: The worker's number.
        connection: The connection to the server process.
        memory: Board, inbox and outbox.
    """
    _close_alive_pipe()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the server process, which ends us
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    set_task_identity(setup.run_id)
    try:
        setup.prepare(number)
        worker = _Worker(setup, *memory)
    except Exception:
        connection.send_bytes(pickle.dumps(traceback.format_exc()))
        return
    connection.send_bytes(pickle.dumps(None))
    while True:
        try:
            task = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):  # the server process has ended
            return
        done = worker.run(task)
        with suppress(OSError):  # as above; the next read ends this process
            connection.send_bytes(pickle.dumps(done))


def _close_alive_pipe() -> None:
    """Close this process's copy of the pipe that tells the fork server that its parent lives.

    With it open, the fork server would outlive a killed parent for as long as a worker is busy.
    """
    copy = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)
    if copy is not None:
        os.close(copy)
        forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]


class _Worker:
    def __init__(
        self, setup: WorkerSetup, board: SharedMemory, inbox: SharedMemory, outbox: SharedMemory
    ) -> None:
        load_app: Callable[[], ClientApp] = cloudpickle.loads(setup.load_app)
        self._app = load_app()
        self._setup = setup
        self._board = board
        self._inbox = inbox
        self._outbox = outbox

    def run(self, task: Task) -> Done:
        """Run the app for a task."""
        message: Message = _unpack(task.message, self._board)
        state = RecordDict() if task.state is None else _unpack(task.state, self._inbox)
        context = Context(
            run_id=self._setup.run_id,
            node_id=task.node_id,
            node_config={**task.node_config},
            state=state,
            run_config=dict(self._setup.run_config),
        )
        try:
            reply = self._app(message, context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {reply!r}, not a Message: return one.")
        except Exception as error:
            reason = f"{type(error)}:<'{error}'>"  # as Flower's simulation writes it
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            failed = Message(Error(code, reason), reply_to=_unpack(task.message, self._board))
            header, large = split(failed)
            return Done(Packed(header, self._outbox.write(large)), None, traceback.format_exc())
        header, large = split(reply)
        places = self._outbox.write(large)
        if not context.state and task.state is None:
            return Done(Packed(header, places), None)
        state_header, state_large = split(context.state)
        end = sum(places[-1]) if places else 0
        state_places = self._outbox.write(state_large, end)
        return Done(Packed(header, places), Packed(state_header, state_places))


def _unpack(packed: Packed, memory: SharedMemory) -> Any:
    return join(packed.header, map(memory.read, packed.places))
