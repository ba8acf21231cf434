"""Flower's own commands, on a SuperLink that is not there."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fixbn_flwr.app.flower_commands import FlowerCommands
from fixbn_flwr.app.flower_processes import flower_environment
from fixbn_flwr.app.supervision.supervisor import Supervisor
from fixbn_flwr.errors import SuperLinkError


@pytest.fixture
def commands(tmp_path: Path) -> FlowerCommands:
    with socket.socket() as reserved:  # nobody listens there
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{address}"\n'
        "insecure = true\n"
    )
    return FlowerCommands("here", flower_environment(tmp_path))


def test_each_command_raises_flowers_reason(commands: FlowerCommands) -> None:
    for call in (commands.check, lambda: commands.status("5"), lambda: commands.stop("5")):
        with pytest.raises(SuperLinkError, match=r"flwr .*Connection to the SuperLink is unavail"):
            call()


def test_an_unknown_connection_is_refused_before_a_supervised_run_starts(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[superlink]\ndefault = "here"\n')
    environment = flower_environment(tmp_path)
    supervisor = Supervisor(
        FlowerCommands("there", environment), None, {}, tmp_path / "run", pytest.fail
    )
    with pytest.raises(SuperLinkError, match=r"'there' not found .*Name one that is there with --"):
        supervisor.supervise()
