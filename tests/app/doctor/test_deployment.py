"""`fixbn doctor --deployment`: what it prints for the homes of a machine."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fixbn_flwr.app.cli import cli
from fixbn_flwr.app.doctor import deployment


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any disk be large enough, also this machine's."""
    monkeypatch.setattr(deployment, "ENOUGH_DISK", 0.0)


def doctor(homes: Path) -> str:
    result = CliRunner().invoke(
        cli, ["doctor", "--deployment", "--home", str(homes)], catch_exceptions=False
    )
    assert result.exit_code == 0
    return result.output


def test_it_reports_disk_and_what_each_home_keeps(homes: Path) -> None:
    lines = doctor(homes).splitlines()
    patterns = [
        r"ok       gateway in \S+/gateway, [\d.]+ GB free",
        r"ok       gateway: 2\.0 MB of logs",
        r"ok       SuperNode in \S+/hospital-a: no process, [\d.]+ GB free",
        r"ok       hospital-a: 0\.0 MB of logs",
        r"ok       hospital-a: 1 installed apps, 1\.0 MB",
        r"note     hospital-a: momentum of run 11, 3\.0 MB, last used \d{4}-\d\d-\d\d \d\d:\d\d",
        r"         -> run `fixbn clean`, if this run will not be resumed",
        r"ok       hospital-a: momentum of run 12, 3\.0 MB, last used \d{4}-\d\d-\d\d \d\d:\d\d",
        r"ok       SuperLink in \S+/superlink: no process, [\d.]+ GB free",
        r"ok       superlink: 4\.\d MB in state\.db",
        r"ok       superlink: 0\.0 MB of logs",
        r"ok       0 temporary folders of ended processes, 0\.0 MB",
    ]
    assert len(lines) == len(patterns), lines
    for pattern, line in zip(patterns, lines, strict=True):
        assert re.fullmatch(pattern, line), line


def test_a_full_disk_has_a_remedy(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "ENOUGH_DISK", math.inf)
    (finding,) = [found for found in deployment.deployment(homes) if "SuperLink in" in found.text]
    assert finding.remedy == "make room there, or give it another --home"
    assert not finding.optional


def test_what_is_large_has_a_remedy(homes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "LARGE", 0.9e6)
    text = doctor(homes)
    for remedy in (
        "2.0 MB of logs\n         -> restart it with a smaller --log-mib",
        "1.0 MB\n         -> stop the SuperNode, and run `fixbn clean`",
        "-> `flwr ls` deletes messages of ended runs; then stop the SuperLink, and run `fixbn",
    ):
        assert remedy in text
