"""From the process that Flower starts for every message to the worker that stays alive.

Between machines Flower runs each message in a new `flwr-clientapp` process, which would import
torch, read the data and build the model every time, for some seconds of training. Here that process
only passes the message and Flower's context to a worker of the node (``fixbn_flwr.app.worker.process``),
starts it where there is none, and takes reply and context back. In a simulation, whose processes
stay alive anyway, the client runs where the message is, and so it does where Flower installs the
app's dependencies for every message anew and removes them after it.

Who a node is, tells the process that starts those of Flower's: its SuperExec. Two SuperNodes on one
machine have one each, hence two workers, and a SuperNode that ends takes its own along. The socket
stands in a directory that only this user may enter.
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
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fixbn_flwr.app.worker.protocol import receive_frame, receive_pair, send_frame, send_pair
from fixbn_flwr.errors import ConfigError, FixBNError

IDLE = 1800.0  # seconds without a message after which a worker ends
CODE = str(Path(__file__).resolve().parents[3])  # Flower unpacks every version into its own
_PROCESS_PER_MESSAGE = "flwr-clientapp"
_INSTALLED_PER_MESSAGE = "runtime-envs"


class WorkerError(FixBNError):
    """The process that trains on this node does not start, or ended in the middle of a message."""


def worker_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let the node's worker answer a message, where each would otherwise have a new process.

    Raises:
        WorkerError: the worker ended over this message; Flower makes it an error reply.
        ConfigError: there is no private directory for the socket.
    """
    node = NodeProcess.of_this_process()
    if node is None:
        return call_next(message, context)
    return Forwarder(_socket_directory(), node).answer(message, context)


@dataclass(frozen=True)
class NodeProcess:
    """The process that starts those of a node: its number, and when it started.

    A number is used again when its process has ended; with the start, in ticks since that of the
    machine, it is not.
    """

    process: int
    started: int

    @classmethod
    def of_this_process(cls) -> NodeProcess | None:
        """Return this process's node; None where messages have no processes of their own."""
        if Path(sys.argv[0]).name != _PROCESS_PER_MESSAGE:
            return None
        if any(_INSTALLED_PER_MESSAGE in Path(entry).parts for entry in sys.path):
            return None
        started = started_at(os.getppid())
        return None if started is None else cls(os.getppid(), started)


def started_at(process: int) -> int | None:
    """Return when a process started, in ticks since the machine's start; None if it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])  # it has ended, and nobody has looked


class Forwarder:
    """Passes messages to a node's worker.

    Args:
        directory: where its socket is, private to this user.
        node: whose worker.
        code: directory with the code that the worker must run.
        idle: seconds without a message after which a worker started from here ends.
    """

    def __init__(
        self, directory: Path, node: NodeProcess, *, code: str = CODE, idle: float = IDLE
    ) -> None:
        self._path = directory / f"{node.process}-{node.started}"
        self._node = node
        self._code = code
        self._idle = idle

    def answer(self, message: Message, context: Context) -> Message:
        """Return the worker's reply; the context's state becomes what the client made of it.

        Raises:
            WorkerError: the worker did not start, or ended over this message.
        """
        with self._connection(f"run {message.metadata.run_id} of {self._code}") as connection:
            try:
                send_pair(connection, message, context)
                reply, afterwards = receive_pair(connection)
            except OSError as error:
                raise WorkerError(
                    f"the worker process that trains on this node ended in the middle of a message "
                    f"({error}): it was killed, or memory was short; its last lines are in the "
                    "node's log. The next message starts another one."
                ) from error
        context.state = afterwards.state
        return reply

    def _connection(self, task: str) -> socket.socket:
        """Connect to the worker for a task, code and run; a new one where there is none for it."""
        with _one_at_a_time(self._path.with_suffix(".lock")):
            connection = self._try_to_connect(task)
            if connection is None:
                self._start(task)
                connection = self._try_to_connect(task)
        if connection is None:
            raise WorkerError(
                f"the worker process of this node ({sys.executable} -m fixbn_flwr.app.worker.process) "
                "ended before it could take a message; why is in the node's log, just above this."
            )
        return connection

    def _try_to_connect(self, task: str) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self._path))
            send_frame(connection, task.encode())
            receive_frame(connection)
        except (FileNotFoundError, ConnectionError):
            connection.close()  # none is there, or it ended while we knocked
            return None
        return connection

    def _start(self, task: str) -> None:
        """Start a worker on a socket that listens already, so that nobody need wait for it."""
        with suppress(FileNotFoundError):
            self._path.unlink()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path))
            listener.listen()
            command = [sys.executable, "-P", "-m", "fixbn_flwr.app.worker.process"]
            command += [str(listener.fileno()), str(self._node.process), str(self._node.started)]
            command += [str(self._idle), task]
            path = os.pathsep.join([self._code, *(entry for entry in sys.path if entry)])
            listener.set_inheritable(True)
            # No subprocess.Popen, which expects to see the end of what it starts. What the worker
            # prints goes where this process's lines go: into the node's log.
            os.posix_spawn(
                sys.executable,
                command,
                os.environ | {"PYTHONPATH": path},
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                setsid=True,  # Flower may end all of the message's own session
            )


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Keep other processes out: two that found no worker would each start one."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _socket_directory() -> Path:
    """Return a directory that this user alone can enter, made where it is not there.

    Raises:
        ConfigError: something else stands in its place.
    """
    path = Path(tempfile.gettempdir()) / f"fixbn-{os.geteuid()}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077 == 0
    if not private or found.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} must be a directory of user {os.geteuid()} with mode 0700, and is not: "
            "somebody else may have made it. Remove it, or set TMPDIR to another directory, with a "
            "short name, where the SuperNode is started."
        )
    return path
