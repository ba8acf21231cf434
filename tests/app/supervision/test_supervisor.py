"""Supervision without a SuperLink."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fixbn_flwr.app.flower_commands import FlowerCommands
from fixbn_flwr.app.flower_processes import flower_environment
from fixbn_flwr.app.supervision.commands import FAILED
from fixbn_flwr.app.supervision.supervisor import Supervisor


def test_a_finished_run_needs_no_superlink(tmp_path: Path) -> None:
    folder, said = tmp_path / "run", list[str]()
    folder.mkdir()
    (folder / "summary.json").touch()
    nowhere = FlowerCommands("nowhere", flower_environment(tmp_path / "flower"))
    Supervisor(nowhere, None, {}, folder, said.append).supervise()
    assert said == [f"Finished: {folder}"]


def test_an_error_has_an_exit_status_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fixbn_flwr", "supervise", str(tmp_path), "resume=there"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == FAILED
    assert result.stderr.startswith("Error: resume = "), result.stderr
