"""A killed or interrupted `fixbn run` leaves no process, with either engine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.real_runs import PROGRAMS, processes_of
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ENGINES = ["local", "ray"]

# A shell lets the programs that it runs in the background ignore Ctrl-C, and these tests may be.
HEARS_CTRL_C = ("env", "--default-signal=INT")


@contextmanager
def training(engine: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `fixbn run` with a mark in its environment; yield it after its second round.

    The first round has its checkpoint then.
    """
    with subprocess.Popen(
        [*HEARS_CTRL_C, PROGRAMS / "fixbn", "run", "num-server-rounds=5000", "--engine", engine],
        cwd=folder, env=os.environ | {"TEST_OF_ORPHANS": str(folder)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            output = []
            for line in process.stdout:
                output.append(line)
                if sum(line.startswith("round ") for line in output) == 2:
                    break
            else:
                pytest.fail("".join(output))
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_survives_a_kill(engine: str, tmp_path: Path) -> None:
    with training(engine, tmp_path) as process:
        assert len(processes_of(tmp_path)) > 2
        process.kill()
    wait_until(lambda: not processes_of(tmp_path), "all its processes have ended")


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_survives_ctrl_c(engine: str, tmp_path: Path) -> None:
    with training(engine, tmp_path) as process:
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate()
        assert process.returncode not in (0, None)
        assert "Resume it with: fixbn run resume=" in output
        # The guard of a SuperLink ends a moment later.
        wait_until(lambda: not processes_of(tmp_path), "all its processes have ended")


def test_a_busy_worker_does_not_survive_a_kill(tmp_path: Path) -> None:
    """Its fork server must notice the kill although the worker never reads."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import time
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from fixbn_flwr.engine.local_grid import LocalGrid

def app():
    client = ClientApp()
    @client.train()
    def train(message, context):
        print("training", flush=True)
        time.sleep(3600)
    return client

with LocalGrid(app, 2, workers=2) as grid:
    grid.send_and_receive([Message(RecordDict(), n, "train") for n in grid.get_node_ids()])
"""
    )
    with subprocess.Popen(
        [PROGRAMS / "python", script], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"TEST_OF_ORPHANS": str(tmp_path)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["training\n"] * 2
        process.kill()
    wait_until(lambda: not processes_of(tmp_path), "all its processes have ended", timeout=60)
