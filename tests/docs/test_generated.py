"""Tables and figures that come from the committed results are what one command writes.

`python -m simulation.documents` repairs a difference.
"""

from __future__ import annotations

import pytest

from simulation.documents.__main__ import DOCS, FIGURES, PAGES
from simulation.documents.blocks import filled
from simulation.experiments.result_log import RESULTS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_has_the_tables_of_the_data(path) -> None:
    text = path.read_text(encoding="utf-8")
    assert filled(text, PAGES[path]) == text


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_that_of_the_results(name) -> None:
    assert (DOCS / "figures" / name).read_bytes() == (RESULTS / FIGURES[name]).read_bytes()
