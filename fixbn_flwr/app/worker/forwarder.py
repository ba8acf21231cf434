"""Forward messages from Flower's short-lived client processes to a worker that stays alive.

In a deployment, Flower runs each message in a new `flwr-clientapp` process. It would have to import
torch, load the data and build the model each time. Instead, this module runs there and sends the
message and Flower's context to the node's worker (``fixbn_flwr.app.worker.process``), starts a
worker if there is none, and returns its reply.

Two cases need no worker, and the client runs in the current process: a simulation, whose processes
stay alive, and a node where Flower installs the app's dependencies for each message and removes
them afterwards.

A node is identified by its SuperExec, the parent of Flower's per-message processes. Two SuperNodes
on one machine therefore have two workers, and a worker ends with its SuperNode. The socket is in a
directory that only the current user can enter.

The two processes exchange bytes over a ``multiprocessing.connection.Connection``, never pickles:

    forwarder → worker   the task: the run of the message, and the directory of the app's code
    worker → forwarder   the same task; a worker for another task ends instead
    forwarder → worker   message, context
    worker → forwarder   reply, context

Messages and contexts are Flower's protocol buffers, which are at most 2 GiB.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from fixbn_flwr.errors import ConfigError, WorkerError
from fixbn_flwr.flower_compat import (
    ClientAppCallable,
    context_from_bytes,
    context_to_bytes,
    message_from_bytes,
    message_to_bytes,
)

IDLE = 1800.0  # seconds without a message after which a worker ends
MAX_BYTES = 2**31  # of a message or a context
CODE = str(Path(__file__).resolve().parents[3])  # Flower unpacks each version of the app elsewhere
_PROCESS_PER_MESSAGE = "flwr-clientapp"
_INSTALLED_PER_MESSAGE = "runtime-envs"


def worker_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let the node's worker answer a message where Flower starts a process for each message.

    Raises:
        WorkerError: If the worker ends while it handles the message. Flower turns it into an error
            reply.
        ConfigError: If there is no private directory for the socket.
    """
    node = NodeProcess.of_this_process()
    if node is None:
        return call_next(message, context)
    return Forwarder(_socket_directory(), node).answer(message, context)


@dataclass(frozen=True)
class NodeProcess:
    """The process that starts a node's per-message processes.

    The start time tells it apart from a later process with the same id.

    Attributes:
        process: Its process id.
        started: Its start time, in clock ticks since the machine booted.
    """

    process: int
    started: int

    @classmethod
    def of_this_process(cls) -> NodeProcess | None:
        """Return this process's node; None where the client runs in the current process."""
        if Path(sys.argv[0]).name != _PROCESS_PER_MESSAGE:
            return None
        if any(_INSTALLED_PER_MESSAGE in Path(entry).parts for entry in sys.path):
            return None
        started = started_at(os.getppid())
        return None if started is None else cls(os.getppid(), started)


def started_at(process: int) -> int | None:
    """Return a process's start time in clock ticks since boot; None if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])  # a zombie has ended


class Forwarder:
    """Sends messages to a node's worker.

    Args:
        directory: The directory of the socket, private to this user.
        node: The node of the worker.
        code: The directory with the code that the worker must run. Default: this package's.
        idle: Seconds without a message after which a worker started from here ends. Default: 1800.
    """

    def __init__(
        self, directory: Path, node: NodeProcess, *, code: str = CODE, idle: float = IDLE
    ) -> None:
        self._path = directory / f"{node.process}-{node.started}"
        self._node = node
        self._code = code
        self._idle = idle

    def answer(self, message: Message, context: Context) -> Message:
        """Return the worker's reply, and update the context's state to the worker's.

        Raises:
            WorkerError: If the worker does not start, or ends while it handles the message.
        """
        with self._connection(f"run {message.metadata.run_id} of {self._code}") as connection:
            try:
                connection.send_bytes(message_to_bytes(message))
                connection.send_bytes(context_to_bytes(context))
                reply = message_from_bytes(connection.recv_bytes(MAX_BYTES))
                context.state = context_from_bytes(connection.recv_bytes(MAX_BYTES)).state
            except (OSError, EOFError) as error:
                raise WorkerError(
                    f"the worker process of this node ended while it handled a message ({error!r})."
                    " It was killed, or the machine ran out of memory; the node's log has its last "
                    "lines. The next message starts a new worker."
                ) from error
        return reply

    def _connection(self, task: str) -> Connection[Any, Any]:
        """Connect to the worker for a task; start a new worker if there is none for it."""
        with _exclusive(self._path.with_suffix(".lock")):
            connection = self._try_to_connect(task)
            if connection is None:
                self._start(task)
                connection = self._try_to_connect(task)
        if connection is None:
            raise WorkerError(
                f"the worker process of this node ({sys.executable} -m "
                "fixbn_flwr.app.worker.process) ended before it could take a message; the node's "
                "log says why, just above this line."
            )
        return connection

    def _try_to_connect(self, task: str) -> Connection[Any, Any] | None:
        try:
            with _address_of(self._path) as address:
                connection = Client(address)
        except (FileNotFoundError, ConnectionError):
            return None
        try:
            connection.send_bytes(task.encode())
            connection.recv_bytes(MAX_BYTES)
        except (EOFError, ConnectionError):  # the worker has ended, or is for another task
            connection.close()
            return None
        return connection

    def _start(self, task: str) -> None:
        """Start a worker with a socket that is listening already, so connecting need not wait.

        The worker's output goes to this process's stdout and stderr, which is the node's log.
        """
        with suppress(FileNotFoundError):
            self._path.unlink()
        with socket.socket(socket.AF_UNIX) as listener:
            with _address_of(self._path) as address:
                listener.bind(address)
            listener.listen()
            command = [sys.executable, "-P", "-m", "fixbn_flwr.app.worker.process"]
            command += [str(listener.fileno()), str(self._path)]
            command += [str(self._node.process), str(self._node.started), str(self._idle), task]
            path = os.pathsep.join([self._code, *(entry for entry in sys.path if entry)])
            listener.set_inheritable(True)
            # Not subprocess.Popen, which warns when its process outlives it.
            os.posix_spawn(
                sys.executable,
                command,
                os.environ | {"PYTHONPATH": path},
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                setsid=True,  # Flower may end every process of the message's session
            )


@contextmanager
def _address_of(path: Path) -> Iterator[str]:
    """Yield an address of a socket's path that is short: the kernel allows 107 bytes."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a file lock, so that two processes do not both start a worker."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _socket_directory() -> Path:
    """Return a directory that only this user can enter; create it if needed.

    Raises:
        ConfigError: If its path exists and is not such a directory.
    """
    path = Path(tempfile.gettempdir()) / f"fixbn-{os.geteuid()}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077 == 0
    if not private or found.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} is not a directory of user {os.geteuid()} with mode 0700: another user may "
            "have created it. Remove it, or start the SuperNode with TMPDIR set to another "
            "directory."
        )
    return path
