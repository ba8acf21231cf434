"""docs/use-the-model.md: its code runs, in its order."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fixbn_flwr.app.cli import cli
from tests.support.pages import page


def test_the_page_runs_from_its_first_to_its_last_line(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_folder, tmp_path / "runs" / "digits")  # instead of `fixbn run`
    namespace: dict[str, Any] = {}
    commands = []
    for language, code in re.findall(r"```(\w+)\n(.*?)\n```", page("use-the-model.md"), re.DOTALL):
        if language == "python":
            exec(compile(code, "use-the-model.md", "exec"), namespace)
        for line in code.splitlines() if language in ("bash", "text") else []:
            words = shlex.split(line, comments=True)
            words = words[1:] if words[0] == "$" else words
            if words[0] == "fixbn" and words[1] != "run":
                result = CliRunner().invoke(cli, words[1:], catch_exceptions=False)
                assert result.exit_code == 0, result.output
                commands.append(words[1])
    assert commands == ["predict", "export", "export", "export"]
    assert namespace["probabilities"].shape == (5, 10)
    assert namespace["logits"].shape == (1, 10)
    exported = {file.name for file in (tmp_path / "runs" / "digits" / "export-best").iterdir()}
    assert exported == {
        "README.md", "config.json", "model.onnx", "model.pt", "model.safetensors"
    }  # fmt: skip
