"""Checkpoints written in a thread: what is promised meanwhile, and late errors."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.persistence.checkpoint_writer import CheckpointWriter
from fixbn_flwr.persistence.checkpoints import Checkpoints


class SlowDisk(Checkpoints):
    """Checkpoints that are written when the test says so."""

    def __init__(self, folder: Path, keep: int) -> None:
        super().__init__(folder, keep)
        self.go = threading.Event()

    def write(self, server_round: int, content: bytes) -> Path:
        assert self.go.wait(60)
        return super().write(server_round, content)


def test_the_run_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    disk = SlowDisk(tmp_path, keep=2)
    writer, array = CheckpointWriter(disk), np.zeros(3)
    writer.save(1, {"weight": array})
    array += 7  # the next round changes the array
    assert (writer.rounds, disk.rounds()) == ([1], [])
    disk.go.set()
    writer.wait()
    server_round, tree = disk.newest()
    assert (server_round, tree["weight"].tolist()) == (1, [0, 0, 0])


@pytest.mark.parametrize(
    ("keep", "rounds"), [(1, [[1], [1, 2], [2, 3], [3, 4]]), (2, [[1], [1, 2], [2, 3], [3, 4]])]
)
def test_the_run_can_always_be_resumed_from_a_promised_round(
    keep: int, rounds: list[list[int]], tmp_path: Path
) -> None:
    """Also when it is killed before the newest checkpoint is complete."""
    checkpoints = Checkpoints(tmp_path, keep)
    writer, promised = CheckpointWriter(checkpoints), []
    for server_round in (1, 2, 3, 4):
        writer.save(server_round, server_round)
        promised.append(writer.rounds)
    writer.wait()
    assert promised == rounds
    assert checkpoints.rounds() == [1, 2, 3, 4][-keep:]
    assert CheckpointWriter(checkpoints).rounds == checkpoints.rounds()


@pytest.mark.parametrize("call", ["save", "wait"])
def test_an_error_of_the_disk_is_raised_by_the_next_call(call: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    writer = CheckpointWriter(Checkpoints(tmp_path / "file"))
    writer.save(1, "tree")
    with pytest.raises(CheckpointError, match="round 1 cannot be written"):
        writer.save(2, "tree") if call == "save" else writer.wait()
    writer.wait()  # raised once


def test_a_tree_that_a_file_cannot_hold_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a set"):
        CheckpointWriter(Checkpoints(tmp_path)).save(1, {"labels": {1, 2}})
