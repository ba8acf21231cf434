"""Homes as the scripts of `deploy/` make them, with old and new things in them."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flwr.supercore.state.schema.corestate_models import (
    Fab,
    FederationApp,
    FlwrBase,
    Task,
    TaskLogsTable,
)
from sqlalchemy import create_engine, insert

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def age(folder: Path, days: float) -> None:
    """Let all of a folder have been written so many days ago."""
    then = time.time() - days * 86400
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def make_homes(folder: Path) -> Path:
    """Write a SuperLink's, a gateway's and a node's home to a folder; return it."""
    for name in ("superlink", "gateway", "hospital-a"):
        write(folder / name / "health.json", 0)
    write(folder / "gateway" / "nginx.conf", 0)
    write(folder / "gateway" / "refused.log.1", 2_000_000)
    for run, days in ((11, 40), (12, 2)):
        write(folder / "hospital-a" / "momentum" / f"{run}/node-5/round-1.safetensors", 3_000_000)
        age(folder / "hospital-a" / "momentum" / str(run), days)
    write(folder / "hospital-a" / "apps" / "old" / "app.py", 1_000_000)
    age(folder / "hospital-a" / "apps" / "old", 40)
    make_database(folder / "superlink" / "state.db")
    return folder


def make_database(path: Path) -> None:
    """Write a database with Flower's own tables: a run that ended 40 days ago, and newer ones."""
    engine = create_engine(f"sqlite:///{path}")
    FlwrBase.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        for task, fab, ended in ((1, "a", 40), (2, "b", 40), (3, "c", 2), (4, "d", None)):
            connection.execute(
                insert(Task).values(
                    task_id=task, type="flwr-serverapp", run_id=task + 10, fab_hash=fab,
                    pending_at=NOW - 50 * DAY, details="", sub_status="completed",
                    finished_at=None if ended is None else NOW - ended * DAY,
                )
            )  # fmt: skip
            connection.execute(
                insert(Fab).values(fab_hash=fab, content=b"x" * 1_000_000, verifications="{}")
            )
            connection.execute(insert(TaskLogsTable).values(timestamp=0.0, task_id=task, log="log"))
        connection.execute(
            insert(FederationApp).values(
                federation_id="f", app_id="fixbn/b", fab_hash="b", app_type="x", added_by="me",
                added_at=NOW, updated_at=NOW,
            )
        )  # fmt: skip
    engine.dispose()
