"""What clients keep on this machine between rounds: how much it is, and its end with its run.

Only with `state-dir`, see :mod:`fixbn_flwr.client.momentum_store`. On real machines each node keeps its own, where
the server cannot see it: `deploy/README.md` says how to remove that.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from fixbn_flwr.app.config.rules import problem
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.reader import CONFIG, read_config
from fixbn_flwr.app.runs.writer import locked
from fixbn_flwr.errors import ConfigError

_logger = logging.getLogger("flwr.fixbn")


def folder_of(settings: Settings, run: int) -> Path | None:
    """Return the folder of all clients' files of a run, by Flower's number of it, if it is here."""
    return _folder(settings.state_dir, run) if settings.momentum == "local" else None


def _folder(state_dir: str, run: int) -> Path | None:
    folder = Path(state_dir).expanduser().absolute() / str(run)
    return folder if state_dir and folder.is_dir() else None


def check_place(settings: Settings) -> None:
    """Make the directory for what clients keep, where they run on this machine.

    Raises:
        ConfigError: it cannot be made or written.
    """
    if settings.momentum != "local" or not settings.state_dir:
        return
    folder = Path(settings.state_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"cannot be written ({error}); name a directory that can, with room on its disk"
        raise ConfigError(problem("state-dir", settings.state_dir, text)) from error


def size_of(folder: Path) -> int:
    """Return how many bytes the files below a folder hold."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def report(folder: Path) -> str:
    """Return a line on what a run's clients keep."""
    clients = sum(1 for _ in folder.iterdir())
    return f"Momentum of {clients} clients: {size_of(folder) / 1e6:.1f} MB in {folder}"


def warn_of_full_disk(folder: Path, clients: int, files: int) -> None:
    """Warn when a disk will be too small once all clients have trained.

    Args:
        folder: of the run's clients, some of which have trained.
        clients: how many there are.
        files: how many files each may come to keep.
    """
    largest = max((path.stat().st_size for path in folder.rglob("*.safetensors")), default=0)
    needed, there = largest * clients * files, size_of(folder)
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        _logger.warning(
            "the momentum of %s clients will need %.1f GB in %s, and %.1f GB are free there: name "
            "a larger disk as state-dir, or use momentum=reset",
            clients, needed / 1e9, folder, free / 1e9,
        )  # fmt: skip


def delete_run(path: Path) -> list[Path]:
    """Delete a run's folder, and what its clients have kept on this machine.

    Returns:
        What was deleted.

    Raises:
        ConfigError: this is not the folder of a run, or it cannot be deleted.
        CheckpointError: the run is still running.
    """
    config = read_config(path)
    with locked(path):
        state = _folder(str(config["run_config"].get("state-dir", "")), config["run"])
        gone = [path, *([state] if state else [])]
        for folder in reversed(gone):
            try:
                _remove(folder)
            except OSError as error:
                raise ConfigError(
                    f"{folder} cannot be deleted ({error}): mend that and delete the run again"
                ) from error
    return gone


def _remove(folder: Path) -> None:
    """Remove a folder; what says that it is a run's comes last, for a kill may come before."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != CONFIG:
            path.unlink()
    shutil.rmtree(folder)
