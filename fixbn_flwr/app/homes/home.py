"""Find the homes that the scripts of `deploy/` have made, and what is in them."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fixbn_flwr.app.process_cleanup import processes_with
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.persistence.file_sizes import files_in

DATABASE = "state.db"
_HEALTH = "health.json"  # every script of deploy/ writes it
_LOCK = "lock"  # the scripts of deploy/ and the programs that they start hold it
_NGINX = "nginx.conf"
_TRAINING = b"flwr-clientapp"  # the process that Flower starts for each message


@dataclass(frozen=True)
class Home:
    """The home of a SuperLink, a gateway or a SuperNode.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def kind(self) -> str:
        """Return what it is the home of."""
        if (self.path / DATABASE).exists():
            return "SuperLink"
        return "gateway" if (self.path / _NGINX).exists() else "SuperNode"

    @property
    def processes(self) -> list[int]:
        """Return its running processes; nginx's are not known."""
        return processes_with(self.path)

    @property
    def is_running(self) -> bool:
        """Return whether it has a process, or its lock is held, such as from a container."""
        return bool(self.processes) or self._is_locked

    @property
    def is_training(self) -> bool:
        """Return whether its SuperNode processes a message now, or may do so out of sight."""
        processes = self.processes
        if not processes:
            return self._is_locked
        return any(_TRAINING in command_of(process) for process in processes)

    @property
    def apps(self) -> list[Path]:
        """Return the folders of installed apps."""
        return _folders_in(self.path / "apps")

    @property
    def momentum(self) -> list[Path]:
        """Return the folders with momentum, one for each run, the longest unused first."""
        return sorted(_folders_in(self.path / "momentum"), key=last_use)

    @property
    def logs(self) -> list[Path]:
        """Return its logs and the audit, with their older files."""
        return [*self.path.glob("*.log*"), *self.path.glob("*.jsonl*")]

    @property
    def _is_locked(self) -> bool:
        with suppress(OSError), (self.path / _LOCK).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def homes_in(folder: Path) -> list[Home]:
    """Return the homes in a folder, or the folder if it is a home itself, as in a container.

    Raises:
        ConfigError: If there is none, or the folder cannot be read.
    """
    remedy = (
        "name the folder of the homes with --home, such as ~/.fixbn, or /var/lib/fixbn with systemd"
    )
    try:
        paths = [*folder.glob(_HEALTH), *sorted(folder.glob(f"*/{_HEALTH}"))]
        found = [Home(path.parent) for path in paths]
        if folder.is_dir():
            os.listdir(folder)  # glob does not say what it may not read
    except PermissionError as error:
        raise ConfigError(
            f"{folder} cannot be read: run this as the user it belongs to."
        ) from error
    if not found:
        raise ConfigError(f"{folder} has no home of a SuperLink, gateway or SuperNode: {remedy}.")
    return found


def last_use(folder: Path) -> datetime:
    """Return when a file in a folder was last written, or the folder itself if it has none.

    A folder that has disappeared was last written now.
    """
    newest = max((file.st_mtime for file in files_in(folder)), default=None)
    if newest is None:
        try:
            newest = folder.stat().st_mtime
        except FileNotFoundError:
            return datetime.now().astimezone()
    return datetime.fromtimestamp(newest).astimezone()


def command_of(process: int) -> bytes:
    """Return the command line of a process; empty if it has ended or is another user's."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def _folders_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
