"""A report of two real runs on digits."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixbn_flwr.app.report.page import write_report
from tests.support.whole_app import run_app


@pytest.fixture(scope="package")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a run with FixBN and of one with another rate and without a freeze."""
    folder = tmp_path_factory.mktemp("report")
    fixbn = run_app(
        folder / "a", 3, {"run-name": "fixbn", "fraction-train": 1.0, "validation-share": 0.2}
    )
    changes = {"run-name": "plain", "freeze-after": 1.0, "learning-rate": 0.02}
    plain = run_app(folder / "b", 3, {**changes, "fraction-train": 1.0})
    write_report([fixbn, plain], folder / "report.html")
    return folder / "report.html"
