"""The app between real processes gives the same bits as on the in-memory grid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from simulation.benchmarks.real_federation import real_federation
from tests.support.pages import ROOT as APP
from tests.support.whole_app import SMALL, rounds_of, run_app

pytestmark = pytest.mark.slow


def test_real_processes_give_the_same_bits_as_the_in_memory_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    config: dict[str, Any] = {"fraction-train": 1.0, "validation-share": 0.2}
    in_memory = run_app(tmp_path / "memory", 2, config)
    output = {"output-dir": str(tmp_path / "real"), "run-name": "run"}
    lines: list[str] = []
    quick = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    with real_federation(nodes=2, secure=False, of_nodes=quick) as link:
        failure = link.run(APP, SMALL | config | output, {}, lines.append)
        logs = [link.node_log(number) for number in range(2)]
    assert failure is None, "\n".join([*lines, *logs])
    real = tmp_path / "real" / "run"
    for model in ("final.safetensors", "best.safetensors"):
        assert (real / model).read_bytes() == (in_memory / model).read_bytes(), model
    assert [line["clients"] for line in rounds_of(real)] == [2] * 3
    for log in logs:  # one process answered all seven messages
        assert len(set(re.findall(r"worker (\d+) answers", log))) == 1, log
        assert len(re.findall(r"worker \d+ answers", log)) == 7, log
