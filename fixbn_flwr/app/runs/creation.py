"""Create the folder of a new run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.environment import hardware, versions
from fixbn_flwr.app.runs.lock import locked
from fixbn_flwr.app.runs.reader import CONFIG
from fixbn_flwr.app.runs.writer import RunFolder, json_bytes
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.schedule import AUTO
from fixbn_flwr.persistence.atomic_files import write_atomically
from fixbn_flwr.tasks.signature import Signature


def create_run_folder(
    settings: Settings,
    *,
    method: str,
    clients: int,
    signature: Signature,
    own_data: bool = False,
    run: int = 0,
    when: datetime | None = None,
) -> RunFolder:
    """Create `<output-dir>/<run-name>` with its config.json, and lock it.

    An existing run is never overwritten. A generated name gets a numeric suffix if it is taken.

    Args:
        settings: The run config.
        method: The run's label.
        clients: The number of all its clients.
        signature: What the model takes and returns.
        own_data: Whether the clients train on their own data. Default: on parts of the task's.
        run: Flower's id of the run. Default: 0, without Flower.
        when: The start of the run. Default: now.

    Raises:
        ConfigError: If a run of the given name exists, or the folder cannot be created or written.
            Nothing is left behind then.
    """
    when = when or datetime.now().astimezone()
    config = {
        "run_config": settings.as_run_config(),
        "method": method,
        "freeze_round": None if settings.freeze_after == AUTO else settings.freeze_round,
        "clients": clients,
        "own_data": own_data,
        "signature": dataclasses.asdict(signature),
        "run": run,
        "started": when.isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(),
    }
    with _new_folder(settings) as new:
        write_atomically(new / CONFIG, json_bytes(config))
        path = _rename(new, settings, method, when)
    lock = ExitStack()
    lock.enter_context(locked(path))
    return RunFolder(path, settings, method=method, clients=clients, run=run, lock=lock)


def check_run_folder(settings: Settings) -> None:
    """Check that the folder of a new run can be created, and leave nothing behind.

    Raises:
        ConfigError: As ``create_run_folder`` raises it.
    """
    with _new_folder(settings) as new:
        path = new.with_name(settings.run_name)
        if settings.run_name and path.exists() and (path.is_file() or any(path.iterdir())):
            raise _taken(path)


@contextmanager
def _new_folder(settings: Settings) -> Iterator[Path]:
    """Yield a new folder in ``output-dir``; remove what the block does not rename.

    Raises:
        ConfigError: If it cannot be created, or the block cannot write.
    """
    root = Path(os.path.abspath(os.path.expanduser(settings.output_dir or "~/fixbn-runs")))
    new, made = root / f".{uuid.uuid4()}.new", list[Path]()
    try:
        made += [folder for folder in (root, *root.parents) if not folder.exists()]
        root.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        yield new
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"output-dir = {json.dumps(settings.output_dir)}: cannot create a run folder in "
            f"{root} ({error}); name a writable directory on a disk with free space"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        for folder in made:
            with suppress(OSError, ValueError):  # not created, or a run is in it
                folder.rmdir()


def _taken(path: Path) -> ConfigError:
    return ConfigError(
        f"run-name = {json.dumps(path.name)}: {path} exists, and a run is never overwritten; "
        "choose another run-name, or leave it empty"
    )


def _rename(new: Path, settings: Settings, method: str, when: datetime) -> Path:
    """Give a new folder the run's name, and return its path.

    Raises:
        ConfigError: If the user's name is taken.
    """
    name = settings.run_name
    if not name:
        name = f"{when:%Y%m%d-%H%M%S}-{settings.task_name}-{method.replace(' ', '-')}"
    number = 1
    while True:
        path = new.with_name(name if number == 1 else f"{name}-{number}")
        try:
            return new.rename(path)  # replaces an empty folder, but nothing else
        except OSError:
            if not path.exists():
                raise
        if settings.run_name:
            raise _taken(path)
        number += 1
