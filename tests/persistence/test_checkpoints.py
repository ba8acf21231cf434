"""The newest intact checkpoint is loaded, damaged ones are skipped, and old ones are removed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.persistence.checkpoints import Checkpoints


def saved(folder: Path, *rounds: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep)
    for server_round in rounds:
        checkpoints.save(server_round, {"w": np.full(3, server_round)})
    return checkpoints


def test_the_newest_checkpoint_is_loaded_and_older_ones_are_removed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "c", 1, 2, 10, 9_999_999)
    assert checkpoints.rounds() == [10, 9_999_999]
    server_round, tree = checkpoints.newest()
    assert server_round == 9_999_999
    assert np.array_equal(tree["w"], np.full(3, 9_999_999))
    assert len(list((tmp_path / "c").iterdir())) == 2


def flip_a_bit(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.mark.parametrize(
    "damage", [flip_a_bit, lambda c: c[:-1], lambda _: b"", lambda c: c + b"\0"]
)
def test_a_damaged_checkpoint_is_skipped_and_the_previous_one_is_loaded(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    newest = max(tmp_path.iterdir())
    newest.write_bytes(damage(newest.read_bytes()))
    assert checkpoints.newest()[0] == 1
    assert f"{newest} is damaged (its checksum is not the one in its name)" in caplog.text
    # The run resumes after round 1. Its new checkpoint of round 2 replaces the damaged one.
    checkpoints.save(2, {"w": np.zeros(1)})
    assert np.array_equal(checkpoints.newest()[1]["w"], np.zeros(1))
    assert checkpoints.rounds() == [1, 2]
    assert not newest.exists()


def test_without_an_intact_checkpoint_a_run_cannot_resume(tmp_path: Path) -> None:
    message = r"no intact checkpoint \(0 damaged\).*Start it again"
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(tmp_path / "none").newest()
    checkpoints = saved(tmp_path, 1)
    next(tmp_path.iterdir()).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no intact checkpoint \(1 damaged\)"):
        checkpoints.newest()


def test_unrelated_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "round-3-notes.txt").write_text("mine")
    assert saved(tmp_path, 1, 2, 3).rounds() == [2, 3]
    assert (tmp_path / "round-3-notes.txt").read_text() == "mine"


def test_partial_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".round-000001-abc.safetensors.77.partial").write_bytes(b"half")
    saved(tmp_path, 1)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_a_full_disk_fails_with_the_remedy_and_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"No space left.*free space"):
            checkpoints.save(2, {"w": np.ones(1)})
    assert checkpoints.newest()[0] == 1
    assert len(list(tmp_path.iterdir())) == 1
