"""A run on the engine: what its log shows."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from fixbn_flwr.app import local_run
from fixbn_flwr.app.config.settings import Settings
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


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("auto", None, ["0", "1", "2"]),
        ("cuda", "4,5,7", ["4", "5", "7"]),
        ("cuda:1", None, []),  # all workers use this one
        ("cpu", None, []),
    ],
)
def test_each_gpu_gets_a_worker(
    device: str, visible: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local_run._gpus(Settings.from_run_config({"device": device})) == expected


def test_a_worker_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "unchanged")
    monkeypatch.setattr(local_run, "_quiet_log", lambda: None)
    seen = []
    for number, gpus in ((0, ["4", "5"]), (1, ["4", "5"]), (2, ["4", "5"]), (1, [])):
        local_run._prepare_worker(lambda: None, gpus, number)
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == ["4", "5", "4", "4"]
