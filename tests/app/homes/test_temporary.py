"""Temporary folders that `fixbn clean` may delete: only those of this package and of Ray."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from fixbn_flwr.app.homes.temporary import abandoned
from tests.support.homes import age


def test_only_folders_that_tempfile_made_are_found(tmp_path: Path) -> None:
    made = [Path(tempfile.mkdtemp(dir=tmp_path, prefix=name)) for name in ("fixbn-", "fixbn-app-")]
    (tmp_path / "fixbn-vacation").mkdir(mode=0o755)  # a word of eight letters
    # The last one is where the workers of user 12345678 have their sockets.
    for name in ("fixbn-flwr", "fixbn-runs", "fixbn-app-", "fixbn-Hospital", "fixbn-12345678"):
        (tmp_path / name).mkdir(mode=0o700)
    for folder in tmp_path.iterdir():
        age(folder, 40)
    (tmp_path / "fixbn-link_of_8").symlink_to(made[0])
    assert abandoned(datetime.now().astimezone(), tmp_path) == sorted(made)
