"""A run on the engine: what its log shows."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.real_runs import PROGRAMS

TASK = """
from dataclasses import replace
from fixbn_flwr.tasks.digits import TASK as DIGITS

def loss(outputs, targets):
    raise LookupError("no weights for this class")

TASK = replace(DIGITS, name="unlucky", loss=loss)
"""


def test_the_traceback_of_clients_that_all_fail_is_shown_once(tmp_path: Path) -> None:
    (tmp_path / "unlucky.py").write_text(TASK)
    run = subprocess.run(
        [PROGRAMS / "fixbn", "run", "task=unlucky:TASK", "evaluate-every=9",
         "num-server-rounds=2", "--clients", "2", "--workers", "1"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stdout.count("LookupError: no weights for this class") == 1
    assert 'unlucky.py", line 6, in loss' in run.stdout
    assert run.stderr.splitlines()[-1].endswith("it failed (code 2): no weights for this class")
