"""Homes: they are found, it is known whether they are in use, and files may disappear."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fixbn_flwr.app.homes.cleaning import leftovers
from fixbn_flwr.app.homes.home import Home, homes_in, last_use
from fixbn_flwr.persistence.file_sizes import bytes_of, files_in
from tests.support.homes import write


@contextmanager
def process(home: Path | str) -> Iterator[int]:
    """Run a process of a home until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env={"FLWR_HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdout.readline()
        yield running.pid
        running.stdin.write(b"\n")


def test_processes_are_found_by_any_path_of_their_home(tmp_path: Path) -> None:
    home = tmp_path / "homes" / "node"
    home.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "homes")
    with process(home) as number:
        assert Home(link / "node").processes == [number]
        assert Home(tmp_path / "homes" / ".." / "link" / "node").processes == [number]
        assert Home(tmp_path / "homes").processes == []
    with process(link / "node") as number:
        assert Home(home).processes == [number]
    with process(""):
        assert Home(Path.cwd()).processes == []


def test_a_home_whose_lock_is_held_is_in_use(homes: Path) -> None:
    node = homes / "hospital-a"
    before = datetime.now().astimezone() - timedelta(days=30)
    with (node / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert Home(node).is_running
        kept = [leftover.kept for leftover in leftovers([Home(node)], before)]
        assert kept == [
            "the node is training: wait until it has finished, or stop it",
            "the SuperNode is running: stop it first",
        ]
    assert not Home(node).is_running
    assert [leftover.kept for leftover in leftovers([Home(node)], before)] == ["", ""]


def test_a_folder_that_is_itself_a_home(tmp_path: Path) -> None:
    write(tmp_path / "health.json", 0)
    assert homes_in(tmp_path) == [Home(tmp_path)]


def test_files_and_folders_may_disappear_while_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a" / "1", 10)
    write(tmp_path / "b" / "2", 100)
    write(tmp_path / "b" / "3", 1000)
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a" / "1")
    assert bytes_of(tmp_path, tmp_path / "a" / "1", tmp_path / "none") == 1120
    before = datetime.now().astimezone()
    assert last_use(tmp_path / "none") >= before
    scandir = os.scandir

    def scan(path: str) -> object:  # another process deletes the folder when it is about to be read
        if Path(path).name == "a":
            (tmp_path / "a" / "1").unlink()
            (tmp_path / "a").rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert sorted(file.st_size for file in files_in(tmp_path)) == [100, 1000]
    assert last_use(tmp_path) < before
