"""The units in deploy/systemd: systemd accepts them, and their scripts have these options."""

from __future__ import annotations

import re
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest

from fixbn_flwr.app.supervision.commands import FAILED
from tests.support.machines import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").iterdir())
PAGE = (ROOT / "deploy" / "README.md").read_text()
LIMITS = {
    "NoNewPrivileges": "yes",
    "PrivateTmp": "yes",
    "ProtectSystem": "strict",
    "CapabilityBoundingSet": "",
    "User": "fixbn",
}

pytestmark = pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)


def service(unit: Path) -> dict[str, str]:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[method-assign, assignment]
    parser.read(unit)
    return dict(parser["Service"])


def test_a_unit_restarts_its_process_and_limits_it(unit: Path) -> None:
    found = service(unit)
    assert LIMITS.items() <= found.items()
    is_run = unit.stem == "fixbn-run@"  # it ends when it is finished
    assert found["Restart"] == ("on-failure" if is_run else "always")
    if is_run:
        assert found["RestartPreventExitStatus"] == str(FAILED)
        assert found["SuccessExitStatus"] == "130"
    assert {"RestartSec", "MemoryMax", "TasksMax"} <= found.keys()


def test_a_unit_runs_a_script_with_options_that_exist(unit: Path) -> None:
    python, script, *options = service(unit)["ExecStart"].split()
    assert python == "/opt/fixbn-flwr/.venv/bin/python"
    if script == "-m":
        assert options[:2] == ["fixbn_flwr", "supervise"]
        return
    source = (ROOT / Path(script).relative_to("/opt/fixbn-flwr")).read_text()
    for option in options:
        if option.startswith("--"):
            assert re.search(rf"(?m)^    {option[2:].replace('-', '_')}: Annotated", source), option


def test_the_page_installs_and_starts_the_unit(unit: Path) -> None:
    assert "deploy/systemd/*.service /etc/systemd/system" in PAGE
    assert unit.stem in PAGE


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_a_unit(unit: Path, tmp_path: Path) -> None:
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace("/opt/fixbn-flwr/.venv/bin/python", "/bin/true"))
    result = subprocess.run(
        ["systemd-analyze", "verify", str(here)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in result.stderr.splitlines() if "fixbn" in line]
    assert result.returncode == 0, result.stderr
    assert not complaints
