"""`fixbn clean`: it lists and deletes what is old, and nothing that is new or in use."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fixbn_flwr.app.cli import cli
from fixbn_flwr.errors import ConfigError
from tests.support.homes import age, write


def clean(homes: Path, *words: str, answer: str = "", status: int = 0) -> list[str]:
    result = CliRunner().invoke(
        cli, ["clean", "--home", str(homes), *words], input=answer, catch_exceptions=False
    )
    assert result.exit_code == status
    return result.output.splitlines()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def column(database: Path, query: str) -> list[object]:
    with closing(sqlite3.connect(database)) as connection:
        return [value for (value,) in connection.execute(query)]


@contextmanager
def process(home: Path, *words: str) -> Iterator[None]:
    """Run a process of a home, with words in its command line, until the block ends."""
    code = "print(flush=True); import sys; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=os.environ | {"FLWR_HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        yield
        assert running.stdin is not None
        running.stdin.close()


def test_it_lists_what_is_old_with_its_size_and_deletes_it_when_told_to(homes: Path) -> None:
    before = files(homes)
    session = write(homes.parent / "tmp" / "ray" / "session_2026-01-01_1_2" / "log", 5_000_000)
    age(session.parent, 40)
    old = [
        "hospital-a, last used",
        "hospital-a/apps/old, 1.0 MB",
        "logs of 2 runs, and their apps, in",
        "session_2026-01-01_1_2, 5.0 MB",
    ]
    lines = clean(homes, answer="n\n")
    assert len(lines) == 5
    for expected, line in zip(old, lines, strict=False):
        assert expected in line
    assert lines[0].startswith("momentum of run 11 in ")
    assert lines[0].endswith(", 3.0 MB")
    assert lines[2].endswith("`flwr log` loses them, 1.0 MB")
    assert lines[4] == "Delete 4 of these, 10.0 MB? [y/N]: n"
    assert before <= files(homes)
    assert session.exists()
    lines = clean(homes, "--yes")
    assert len(lines) == 8
    assert before - files(homes) == {
        "hospital-a/momentum/11/node-5/round-1.safetensors",
        "hospital-a/apps/old/app.py",
    }
    assert not session.exists()
    assert clean(homes) == ["Nothing that can be deleted is older than 30 days."]


def test_logs_and_apps_of_old_runs_leave_the_database_and_the_runs_stay(homes: Path) -> None:
    database = homes / "superlink" / "state.db"
    size = database.stat().st_size
    clean(homes, "--yes")
    assert column(database, "SELECT task_id FROM task_logs") == [3, 4]
    # Run 2's app belongs to a federation; 3 is new; 4 still runs.
    assert column(database, "SELECT fab_hash FROM fab ORDER BY 1") == ["b", "c", "d"]
    assert column(database, "SELECT task_id FROM task ORDER BY 1") == [1, 2, 3, 4]
    assert size - database.stat().st_size >= 900_000


def test_a_database_that_is_open_is_left_alone(homes: Path) -> None:
    database = homes / "superlink" / "state.db"
    with closing(sqlite3.connect(database)) as superlink:
        superlink.execute("SELECT * FROM task").fetchall()
        lines = clean(homes, "--yes", status=1)
    assert "Not deleted: logs of 2 runs" in lines[-1]
    assert "is in use (" in lines[-1]
    assert lines[-1].endswith("): stop its SuperLink, and clean again.")
    assert len(column(database, "SELECT task_id FROM task_logs")) == 4


def test_a_running_superlink_keeps_its_records(homes: Path) -> None:
    with process(homes / "superlink"):
        lines = clean(homes, "--yes")
    assert lines[2].endswith("1.0 MB. Kept: the SuperLink is running: stop it first")
    assert len(column(homes / "superlink" / "state.db", "SELECT task_id FROM task_logs")) == 4


def test_a_node_keeps_its_apps_while_it_runs_and_its_momentum_while_it_trains(homes: Path) -> None:
    node = homes / "hospital-a"
    with process(node, "flwr-clientapp"):
        lines = clean(homes, "--yes")
    assert "Kept: the node is training: wait until it has finished" in lines[0]
    assert "Kept: the SuperNode is running: stop it first" in lines[1]
    assert (node / "momentum" / "11").exists()
    with process(node):
        clean(homes, "--yes")
    assert not (node / "momentum" / "11").exists()
    assert (node / "apps" / "old").exists()


def test_a_temporary_folder_that_a_process_names_is_kept(homes: Path) -> None:
    folder = homes.parent / "tmp"
    used, left = (Path(tempfile.mkdtemp(prefix="fixbn-")) for _ in range(2))
    for path in (used, left, folder / "another"):
        write(path / "file", 1)
        age(path, 40)
    with process(homes, str(used / "file")):
        clean(homes, "--yes")
    assert {path.name for path in folder.iterdir()} == {used.name, "another"}


@pytest.mark.parametrize(
    ("statement", "code", "message"),
    [
        ("BEGIN", sqlite3.SQLITE_FULL, "nothing was deleted: make room there, and clean again"),
        (
            "VACUUM",
            sqlite3.SQLITE_FULL,
            "The logs and apps are deleted, and only the file could not shrink",
        ),
    ],
)
def test_a_full_disk(
    homes: Path, monkeypatch: pytest.MonkeyPatch, statement: str, code: int, message: str
) -> None:
    class FullDisk(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql.startswith(statement):
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = code
                raise error
            return super().execute(sql, *values)

    database = homes / "superlink" / "state.db"
    with monkeypatch.context() as full:
        full.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=FullDisk))
        assert message in clean(homes, "--yes", status=1)[-1]
    left = [3, 4] if statement == "VACUUM" else [1, 2, 3, 4]
    assert column(database, "SELECT task_id FROM task_logs") == left


def test_a_busy_database_is_not_called_damaged(
    homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = homes / "superlink" / "state.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0))
        lines = clean(homes, "--yes", status=1)
    assert any("Kept: " in line and "is in use (" in line for line in lines)


def test_what_is_damaged_is_named_and_the_rest_is_deleted(
    homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (homes / "superlink" / "state.db").write_bytes(b"no database " * 100)
    stuck, rmtree = homes / "hospital-a" / "momentum" / "11", shutil.rmtree

    def remove(path: Path) -> None:
        if path == stuck:
            raise PermissionError(errno.EPERM, "Operation not permitted", str(path))
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", remove)
    lines = clean(homes, "--yes", status=1)
    damaged = next(line for line in lines if line.startswith("logs in "))
    assert "state.db cannot be used (file is not a database): it is damaged" in damaged
    failed = next(line for line in lines if line.startswith("Not deleted: "))
    assert failed.endswith("fix the cause and clean again.")
    assert lines[-1].startswith("Deleted: app ")
    assert not (homes / "hospital-a" / "apps" / "old").exists()


def test_another_limit_and_a_folder_without_homes(homes: Path, tmp_path: Path) -> None:
    clean(homes, "--yes", "--older-than", "1")
    assert not list((homes / "hospital-a" / "momentum").iterdir())
    with pytest.raises(ConfigError, match="has no home of a SuperLink, gateway or SuperNode"):
        clean(tmp_path / "tmp")
