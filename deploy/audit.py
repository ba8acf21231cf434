"""Write what happens in a federation to the SuperLink's `audit.jsonl`, one JSON object per line.

The source is the SuperLink's database, read every two seconds, and never written. The log is its
own bookmark: at a start, what its files already hold is not written again. Dropped replies come
from the app, see `fixbn_flwr.app.server.reply_audit`, which appends to the same file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from bounded_logs import OLD, ended, rotate, start_helper
from common import DeployError
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from fixbn_flwr.persistence.appended_lines import append_lines

AUDIT = "audit.jsonl"
PERIOD = 2.0  # seconds between two reads of the database

_NODE_EVENTS = {
    "node-registered": "registered_at",
    "node-joined": "last_activated_at",
    "node-left": "last_deactivated_at",
    "node-unregistered": "unregistered_at",
}
_RUNS = """
    SELECT run.run_id, fab_id, fab_version, run.fab_hash, override_config, flwr_aid,
           pending_at, finished_at, sub_status, details
    FROM run JOIN task ON task.task_id = run.primary_task_id
"""

Event = dict[str, Any]


def start_audit(home: Path, mib: int) -> None:
    """Keep the audit of a SuperLink's home, from now until this process ends.

    Raises:
        DeployError: If its files cannot be read.
    """
    try:
        audit = Audit(home / AUDIT)
    except OSError as error:
        raise DeployError(
            f"the audit cannot be read ({error}): give its files to this user, or move them away."
        ) from error

    def follow(reading: int) -> None:
        last, problem = False, ""
        while not last:
            last = ended(reading, PERIOD)  # then read once more
            try:
                audit.add(events(home / "state.db"))
                rotate(home / AUDIT, mib)
                problem = ""
            except (OSError, sqlite3.Error) as error:  # the next read catches up
                if str(error) != problem:
                    print(f"{home / AUDIT} is not up to date: {error}", flush=True)
                problem = str(error)

    start_helper(follow)


def events(database: Path) -> list[Event]:
    """Return all events that a SuperLink's database knows of, in the order of their times.

    A database that does not exist yet, or has no tables yet, has none.

    Raises:
        sqlite3.Error: If it cannot be read.
    """
    if not database.exists():
        return []
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'task'").fetchone():
            return []
        nodes = [dict(row) for row in connection.execute("SELECT * FROM node")]
        runs = [dict(row) for row in connection.execute(_RUNS)]
    found = [event for node in nodes for event in _of_node(node)]
    found += [event for run in runs for event in _of_run(run)]
    return sorted(found, key=lambda event: str(event["time"]))


class Audit:
    """The audit's files. Each event is written once, also by a later process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[tuple[str, int], str] = {}
        older = [path.with_name(f"{path.name}.{number}") for number in range(OLD, 0, -1)]
        # Deleted files held earlier events than the oldest that is left, which were written.
        self._after = max((event["time"] for event in _read(older[0])), default="")
        for file in [*older, path]:
            for event in _read(file):
                if event["event"] != "reply-refused":
                    self._seen[_key(event)] = event["time"]

    def add(self, found: list[Event]) -> None:
        """Append the events that are new."""
        new = [
            event
            for event in found
            if event["time"] > self._after and self._seen.get(_key(event)) != event["time"]
        ]
        if not new:
            return
        lines = "".join(json.dumps(event) + "\n" for event in new).encode()
        append_lines(self._path, lines)
        self._seen |= {_key(event): event["time"] for event in new}


def _key(event: Event) -> tuple[str, int]:
    return event["event"], event["run"] if "run" in event else event["node"]


def _read(file: Path) -> Iterator[Event]:
    """Yield the events in a file, without a line that a power failure has cut."""
    if not file.exists():
        return
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            yield json.loads(line)


def _of_node(node: dict[str, Any]) -> Iterator[Event]:
    for event, column in _NODE_EVENTS.items():
        if node[column]:
            yield {
                "time": node[column],
                "event": event,
                "node": _unsigned(node["node_id"]),
                "name": node.get("name"),  # Flower 1.41 stores none
                "key": fingerprint(node["public_key"]),
            }


def _of_run(run: dict[str, Any]) -> Iterator[Event]:
    number = _unsigned(run["run_id"])
    yield {
        "time": _iso(run["pending_at"]),
        "event": "run-started",
        "run": number,
        "app": f"{run['fab_id']} {run['fab_version']}",
        "app-hash": run["fab_hash"],
        "account": run["flwr_aid"],
        "config": json.loads(run["override_config"] or "{}"),
    }
    if run["finished_at"]:
        yield {
            "time": _iso(run["finished_at"]),
            "event": "run-ended",
            "run": number,
            "status": run["sub_status"],
            "details": run["details"],
        }


def fingerprint(public_key: bytes | None) -> str | None:
    """Return a node's key as `ssh-keygen -lf` prints it; None without a key."""
    try:
        key = load_pem_public_key(public_key or b"")
    except ValueError:  # without keys Flower stores random bytes
        return None
    line = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _unsigned(number: int) -> int:
    """Return an id as Flower shows it; SQLite stores it as a signed number."""
    return number % 2**64


def _iso(time: str) -> str:
    return time.replace(" ", "T")
