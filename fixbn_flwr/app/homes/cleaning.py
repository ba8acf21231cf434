"""What `fixbn clean` deletes: old things that no running process needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from fixbn_flwr.app.homes.home import DATABASE, Home, last_use
from fixbn_flwr.app.homes.records import delete_records, old_records
from fixbn_flwr.app.homes.temporary import abandoned
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.persistence.file_sizes import bytes_of


@dataclass(frozen=True)
class Leftover:
    """Something old.

    Attributes:
        text: What it is.
        size: Its size, in bytes.
        kept: Why it cannot be deleted now, with the remedy. Empty: it can.
        delete: Deletes it.
        failed: Whether ``kept`` is an error.
    """

    text: str
    size: int
    kept: str
    delete: Callable[[], None]
    failed: bool = False

    def __str__(self) -> str:
        """Return a line."""
        return f"{self.text}, {self.size / 1e6:.1f} MB"


def leftovers(homes: list[Home], before: datetime) -> Iterator[Leftover]:
    """Yield what was last used before a time, in homes and in the folder for temporary files."""
    for home in homes:
        for what, found in (("momentum", _momentum), ("apps", _apps), ("logs", _records)):
            try:
                yield from found(home, before)
            except (ConfigError, OSError) as error:
                remedy = "" if isinstance(error, ConfigError) else "; run this as its owner"
                text = f"{what} in {home.path}"
                yield Leftover(text, 0, f"{error}{remedy}", lambda: None, failed=True)
    for path in abandoned(before):
        yield _folder(f"temporary folder {path}", path)


def _momentum(home: Home, before: datetime) -> Iterator[Leftover]:
    kept = (
        "the node is training: wait until it has finished, or stop it" if home.is_training else ""
    )
    for path in home.momentum:
        if (used := last_use(path)) < before:
            text = f"momentum of run {path.name} in {home.path}, last used {used:%F}"
            yield _folder(text, path, kept)


def _apps(home: Home, before: datetime) -> Iterator[Leftover]:
    kept = f"the {home.kind} is running: stop it first" if home.is_running else ""
    for path in home.apps:
        if last_use(path) < before:
            yield _folder(f"app {path}", path, kept)


def _records(home: Home, before: datetime) -> Iterator[Leftover]:
    if home.kind != "SuperLink":
        return
    database = home.path / DATABASE
    runs, size = old_records(database, before)
    if size:
        kept = "the SuperLink is running: stop it first" if home.is_running else ""
        text = f"logs of {runs} runs, and their apps, in {database}; `flwr log` loses them"
        yield Leftover(text, size, kept, partial(delete_records, database, before))


def _folder(text: str, path: Path, kept: str = "") -> Leftover:
    return Leftover(text, bytes_of(path), kept, partial(_remove, path))


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be deleted ({error}): fix the cause and clean again."
        ) from error
