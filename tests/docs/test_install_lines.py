"""Pages for other projects say how Flower finds this package before they run Flower."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VARIABLE = "export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1"
PAGES = [
    "docs/add-to-your-project.md",
    "examples/message-api/README.md",
    "examples/numpy-client/README.md",
    "examples/own-start/README.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_the_variable_comes_before_flwr_run(page: str) -> None:
    """Without it Flower would look for the package in a registry, and end with exit code 608."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    exports = [number for number, line in enumerate(lines) if line.startswith(VARIABLE)]
    runs = [number for number, line in enumerate(lines) if line.startswith("flwr run")]
    assert exports
    assert runs
    assert exports[0] < runs[0]


@pytest.mark.parametrize("page", PAGES)
def test_the_page_says_how_to_end_a_superlink_that_was_started_before(page: str) -> None:
    """Its port is that of `flwr run`; a deployed SuperLink goes on."""
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert "`pgrep -f 'flower-superlink.*--port 39091' | xargs kill`" in text
