"""Supervision without a SuperLink."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fixbn_flwr.app.flower_commands import FlowerCommands
from fixbn_flwr.app.flower_processes import flower_environment
from fixbn_flwr.app.supervision.commands import FAILED
from fixbn_flwr.app.supervision.supervisor import Supervisor
from fixbn_flwr.errors import SuperLinkError
from tests.support.command_line import everything_in


def test_a_finished_run_needs_no_superlink(tmp_path: Path) -> None:
    folder, said = tmp_path / "run", list[str]()
    folder.mkdir()
    (folder / "summary.json").touch()
    nowhere = FlowerCommands("nowhere", flower_environment(tmp_path / "flower"))
    Supervisor(nowhere, None, {}, folder, said.append).supervise()
    assert said == [f"Finished: {folder}"]


def test_without_a_configured_connection_no_command_of_flower_starts_a_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flower"))
    for command in ("check", "run", "status", "stop"):
        monkeypatch.setattr(FlowerCommands, command, lambda *_: pytest.fail("started a command"))
    supervisor = Supervisor(FlowerCommands(), None, {}, tmp_path / "run", pytest.fail)
    with pytest.raises(SuperLinkError, match="'local' has the address ':local:', which starts"):
        supervisor.supervise()
    assert everything_in(tmp_path) == []


def test_a_connection_that_becomes_a_simulation_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[superlink.here]\naddress = "127.0.0.1:9"\n')

    def check(_: FlowerCommands) -> None:
        if ":local:" in config.read_text():
            pytest.fail("it would start a simulation")
        config.write_text('[superlink.here]\naddress = ":local:"\n')
        raise SuperLinkError("away")

    monkeypatch.setattr(FlowerCommands, "check", check)
    monkeypatch.setattr("fixbn_flwr.app.supervision.supervisor._POLL", 0.0)
    said = list[str]()
    here = FlowerCommands("here", flower_environment(tmp_path))
    with pytest.raises(SuperLinkError, match="'here' has the address ':local:', which starts"):
        Supervisor(here, None, {}, tmp_path / "run", said.append).supervise()
    assert said == ["The SuperLink does not answer; waiting for it (away)"]


def test_an_error_has_an_exit_status_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fixbn_flwr", "supervise", str(tmp_path), "resume=there"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == FAILED
    assert result.stderr.startswith("Error: resume = "), result.stderr
