"""A project of today's baselines: Flower 1.17, PyTorch 2.8 and NumPyClients."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.pages import ROOT

pytestmark = pytest.mark.slow


def test_the_library_works_with_flower_1_17_and_torch_2_8() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.versions", "1.17.0", "2.8.0"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "'flwr': '1.17.0', 'torch': '2.8.0'" in run.stdout
