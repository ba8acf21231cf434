"""A finished run on digits, which tests of this folder read and do not change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.whole_app import run_app


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of FixBN: round 1 and 2 explore, 3 to 5 calibrate."""
    settings = {"num-server-rounds": 5, "local-steps": 20, "fraction-train": 1.0}
    settings["validation-share"] = 0.2
    return run_app(tmp_path_factory.mktemp("runs"), 5, {**settings, "run-name": "digits-run"})
