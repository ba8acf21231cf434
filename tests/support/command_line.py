"""Runs the command line in this process and lists the files that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixbn_flwr.app.cli import cli
from fixbn_flwr.app.command_errors import run_commands


def failing_command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run `fixbn` with these words; return its exit code and its error message."""
    with pytest.raises(SystemExit) as ended:
        run_commands(cli, list(words))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.err


def everything_in(folder: Path) -> list[str]:
    """Return the relative paths of all files and folders below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
