"""The momentum files that clients keep on this machine: their size, and their deletion with a run.

Clients keep files only with `state-dir`, see :mod:`fixbn_flwr.client.momentum_store`. On real
machines each node keeps its own, out of the server's reach; `deploy/README.md` says how to remove
them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fixbn_flwr.app.config.rules import problem
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.lock import locked
from fixbn_flwr.app.runs.reader import CONFIG, read_config
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.log import logger
from fixbn_flwr.persistence.file_sizes import bytes_of, files_in


def folder_of(settings: Settings, run: int) -> Path | None:
    """Return the folder with all clients' files of a run, by Flower's run id; None if not here."""
    return _folder(settings.state_dir, run) if settings.momentum == "local" else None


def _folder(state_dir: str, run: int) -> Path | None:
    folder = Path(state_dir).expanduser().absolute() / str(run)
    return folder if state_dir and folder.is_dir() else None


def make_state_dir(settings: Settings) -> None:
    """Create `state-dir`, if set, on the machine where the clients run.

    Raises:
        ConfigError: If it cannot be created or written.
    """
    if settings.momentum != "local" or not settings.state_dir:
        return
    folder = Path(settings.state_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"cannot be written ({error}); name a writable directory on a disk with free space"
        raise ConfigError(problem("state-dir", settings.state_dir, text)) from error


def report(folder: Path) -> str:
    """Return a line with the number and the size of a run's momentum files."""
    clients = sum(1 for _ in folder.iterdir())
    return f"Momentum of {clients} clients: {bytes_of(folder) / 1e6:.1f} MB in {folder}"


def warn_of_full_disk(folder: Path, clients: int, files: int) -> None:
    """Warn if the disk is too small for the momentum files of all clients.

    Args:
        folder: The folder with the clients' files, after some clients have trained.
        clients: The number of clients.
        files: The most files that a client keeps at a time.
    """
    sizes = [file.st_size for file in files_in(folder)]
    needed, used = max(sizes, default=0) * clients * files, sum(sizes)
    free = shutil.disk_usage(folder).free
    if needed - used > free:
        logger.warning(
            "the momentum of %s clients needs %.1f GB in %s, and %.1f GB are free there: set "
            "state-dir to a larger disk, or use momentum=reset",
            clients, needed / 1e9, folder, free / 1e9,
        )  # fmt: skip


def delete_run(path: Path) -> list[Path]:
    """Delete a run's folder, and its clients' momentum files on this machine.

    Returns:
        The deleted folders.

    Raises:
        ConfigError: If this is not the folder of a run, or it cannot be deleted.
        CheckpointError: If the run is still running.
    """
    config = read_config(path)
    with locked(path):
        state = _folder(str(config["run_config"].get("state-dir", "")), config["run"])
        folders = [path, *([state] if state else [])]
        for folder in reversed(folders):
            try:
                _remove(folder)
            except OSError as error:
                raise ConfigError(
                    f"{folder} cannot be deleted ({error}): fix the cause and delete the run again"
                ) from error
    return folders


def _remove(folder: Path) -> None:
    """Remove a folder, config.json last: after a kill it is still recognised as a run's."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != CONFIG:
            path.unlink()
    shutil.rmtree(folder)
