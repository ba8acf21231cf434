"""The records of ended runs in a SuperLink's database: how many there are, and their deletion.

Flower deletes a run's messages and their arrays itself, when the run ends or `flwr ls` is called.
It never deletes the run's log and its app. They are deleted here, while the SuperLink is stopped.
The runs themselves stay in `flwr ls`: they need a few hundred bytes each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fixbn_flwr.errors import ConfigError

_ENDED = "SELECT task_id FROM task WHERE finished_at IS NOT NULL AND finished_at < :before"
_NEEDED = f"""
    SELECT fab_hash FROM task WHERE fab_hash IS NOT NULL AND task_id NOT IN ({_ENDED})
    UNION SELECT fab_hash FROM federation_app
"""
_LOGS = f"task_logs WHERE task_id IN ({_ENDED})"
_APPS = f"fab WHERE fab_hash NOT IN ({_NEEDED})"


def old_records(database: Path, before: datetime) -> tuple[int, int]:
    """Return how many ended runs have a log or an app that can be deleted, and the size of these.

    Args:
        database: The SuperLink's `state.db`.
        before: The runs ended before this time.

    Raises:
        ConfigError: If the database cannot be read, or is in use.
    """
    with _opened(database, "ro") as connection:
        values = {"before": _text(before)}
        runs, logs = connection.execute(
            f"SELECT COUNT(DISTINCT task_id), COALESCE(SUM(LENGTH(log)), 0) FROM {_LOGS}", values
        ).fetchone()
        (apps,) = connection.execute(
            f"SELECT COALESCE(SUM(LENGTH(content)), 0) FROM {_APPS}", values
        ).fetchone()
    return runs, logs + apps


def delete_records(database: Path, before: datetime) -> None:
    """Delete the logs and the apps of runs that ended before a time, and shrink the database.

    Raises:
        ConfigError: If another process, such as its SuperLink, uses the database, or the disk is
            full.
    """
    with _opened(database, "rw") as connection:
        # Only possible for a database that nobody else has open. The SuperLink sets it again.
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        for what in (_LOGS, _APPS):
            connection.execute(f"DELETE FROM {what}", {"before": _text(before)})
        connection.execute("COMMIT")
        try:
            connection.execute("VACUUM")
        except sqlite3.Error as error:
            raise ConfigError(
                f"{database} still has its old size ({error}). The logs and apps are deleted, and "
                "only the file could not shrink; new runs use the space. To shrink it, make room "
                f"for a copy of it, stop its SuperLink, and run `sqlite3 {database} VACUUM`."
            ) from error


@contextmanager
def _opened(database: Path, mode: str) -> Iterator[sqlite3.Connection]:
    try:
        connection = sqlite3.connect(
            f"{database.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None
        )
        try:
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            text = f"{database} is in use ({error}): stop its SuperLink, and clean again."
        elif code == sqlite3.SQLITE_FULL:
            text = (
                f"{database}: {error}, and nothing was deleted: make room there, and clean again."
            )
        else:
            why = "it is damaged, or of another version of Flower"
            text = f"{database} cannot be used ({error}): {why}."
        raise ConfigError(text) from error


def _text(time: datetime) -> str:
    """Return a time as Flower writes it to SQLite."""
    return time.astimezone(UTC).isoformat(sep=" ")
