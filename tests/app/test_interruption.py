from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.interruption import resume_hint
from fixbn_flwr.persistence.checkpoints import Checkpoints


def interrupted(settings: Settings) -> None:
    with pytest.raises(KeyboardInterrupt), resume_hint(settings):
        raise KeyboardInterrupt


def of(folder: Path) -> Settings:
    return Settings(output_dir=str(folder.parent), run_name=folder.name)


def test_ctrl_c_says_how_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a run"
    Checkpoints(folder / "checkpoints").save(7, {"x": np.ones(2)})
    interrupted(of(folder))
    said = capsys.readouterr().err
    assert said == f"Stopped after round 7. Resume it with: fixbn run 'resume={folder}'\n"
    interrupted(Settings(resume=str(folder)))
    assert capsys.readouterr().err == said


def test_without_a_checkpoint_there_is_nothing_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(of(tmp_path / "run"))
    assert capsys.readouterr().err == ""


def test_a_finished_run_needs_no_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Checkpoints(tmp_path / "run" / "checkpoints").save(7, {"x": np.ones(2)})
    (tmp_path / "run" / "summary.json").write_text("{}")
    interrupted(of(tmp_path / "run"))
    assert capsys.readouterr().err == ""


def test_other_errors_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Checkpoints(tmp_path / "run" / "checkpoints").save(7, {"x": np.ones(2)})
    with pytest.raises(ValueError, match="x"), resume_hint(of(tmp_path / "run")):
        raise ValueError("x")
    assert capsys.readouterr().err == ""


def test_a_closed_output_does_not_hide_the_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkpoints(tmp_path / "run" / "checkpoints").save(7, {"x": np.ones(2)})
    reader, writer = os.pipe()
    os.close(reader)
    closed = os.fdopen(writer, "w", buffering=1)
    monkeypatch.setattr("sys.stderr", closed)
    interrupted(of(tmp_path / "run"))
    monkeypatch.undo()
    with contextlib.suppress(BrokenPipeError):
        closed.close()
