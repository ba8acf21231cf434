"""Connections that start a simulation are refused, exactly those for which Flower starts one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click
import pytest
from flwr.cli import local_superlink
from flwr.cli.flower_config import read_superlink_connection

from fixbn_flwr.app.flower_connection import refuse_simulation
from fixbn_flwr.errors import SuperLinkError
from tests.support.command_line import everything_in

OWN = '[superlink.own]\naddress = "127.0.0.1:8001"\n'
LOCAL = '[superlink.sim]\naddress = ":local:"\n'
IN_MEMORY = '[superlink.sim]\naddress = ":local-in-memory:"\n'
OPTIONS = "[superlink.sim]\noptions.num-supernodes = 2\n"
SIM, DEFAULT_OWN = '[superlink]\ndefault = "sim"\n', '[superlink]\ndefault = "own"\n'


@pytest.mark.parametrize(
    ("config", "name", "address"),
    [
        (None, "", ":local:"),  # Flower writes its default config then
        (None, "local", ":local:"),
        (SIM + LOCAL + OWN, "", ":local:"),
        (SIM + IN_MEMORY, "", ":local-in-memory:"),
        (SIM + OPTIONS, "", ":local:"),
        (DEFAULT_OWN + LOCAL + OWN, "sim", ":local:"),
    ],
)
def test_a_simulation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None, name: str, address: str
) -> None:
    home = make_home(tmp_path, config)
    before = everything_in(tmp_path)
    with pytest.raises(SuperLinkError) as refused:
        refuse_simulation(home, name)
    assert str(refused.value) == (
        f"Flower's connection {name or ('sim' if config else 'local')!r} has the address "
        f"{address!r}, which starts a simulation on this machine: write your SuperLink's address "
        f"to {home}/config.toml, as step 7 of deploy/README.md does, or name its connection with "
        "--superlink."
    )
    assert everything_in(tmp_path) == before
    assert starts_a_simulation(home, name, monkeypatch)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (DEFAULT_OWN + LOCAL + OWN, ""),
        (SIM + LOCAL + OWN, "own"),
        (SIM + '[superlink.sim]\naddress = ""\n', ""),
        (SIM + "[superlink.sim]\naddress = 5\n", ""),
        (SIM + "[superlink.sim]\ninsecure = true\n", ""),
        (SIM + LOCAL, "unknown"),
        (OWN + LOCAL, ""),  # no default
        (None, "federation"),
        ("", ""),
        ("superlink = 5", ""),
        ('superlink = {default = "sim", sim = "here"}', ""),
        ("superlink = {default = [1]}", ""),
        ("[superlink", ""),
        ("\udcff", ""),
    ],
)
def test_any_other_connection_passes_and_errors_are_left_to_flower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None, name: str
) -> None:
    home = make_home(tmp_path, config)
    before = everything_in(tmp_path)
    refuse_simulation(home, name)
    assert everything_in(tmp_path) == before
    if config != "\udcff":  # a traceback of Flower
        assert not starts_a_simulation(home, name, monkeypatch)


def make_home(folder: Path, config: str | None) -> Path:
    home = folder / "flower"
    if config is not None:
        home.mkdir()
        (home / "config.toml").write_bytes(config.encode(errors="surrogateescape"))
    return home


def starts_a_simulation(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether Flower's commands would start a SuperLink for this connection."""
    started: list[bool] = []
    monkeypatch.setenv("FLWR_HOME", str(home))
    monkeypatch.setattr(local_superlink, "_is_local_superlink_started", lambda: False)
    monkeypatch.setattr(local_superlink, "_start_local_superlink", started.append)
    with suppress(click.ClickException):
        local_superlink.ensure_local_superlink(read_superlink_connection(name or None))
    return bool(started)
