"""Find the homes that the scripts of `deploy/` have made, and what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fixbn_flwr.app.process_cleanup import processes_with
from fixbn_flwr.errors import ConfigError

DATABASE = "state.db"
_HEALTH = "health.json"  # every script of deploy/ writes it
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
    def is_training(self) -> bool:
        """Return whether its SuperNode processes a message at the moment."""
        return any(_TRAINING in command_of(process) for process in self.processes)

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


def homes_in(folder: Path) -> list[Home]:
    """Return the homes in a folder.

    Raises:
        ConfigError: If there is none, or the folder cannot be read.
    """
    remedy = (
        "name the folder of the homes with --home, such as ~/.fixbn, or /var/lib/fixbn with systemd"
    )
    try:
        found = [Home(path.parent) for path in sorted(folder.glob(f"*/{_HEALTH}"))]
        if folder.is_dir():
            os.listdir(folder)  # glob does not say what it may not read
    except PermissionError as error:
        raise ConfigError(
            f"{folder} cannot be read: run this as the user it belongs to."
        ) from error
    if not found:
        raise ConfigError(f"{folder} has no home of a SuperLink, gateway or SuperNode: {remedy}.")
    return found


def files_in(path: Path) -> Iterator[os.stat_result]:
    """Yield the sizes and times of all files in a folder; a file that disappears is left out."""
    for file in path.rglob("*"):
        with suppress(FileNotFoundError):
            if file.is_file() and not file.is_symlink():
                yield file.stat()


def bytes_of(*paths: Path) -> int:
    """Return the size of files, and of all files in folders."""
    return sum(
        path.stat().st_size if path.is_file() else sum(file.st_size for file in files_in(path))
        for path in paths
        if path.exists()
    )


def last_use(folder: Path) -> datetime:
    """Return when a file in a folder was last written, or the folder itself if it has none."""
    newest = max((file.st_mtime for file in files_in(folder)), default=folder.stat().st_mtime)
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
