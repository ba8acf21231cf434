"""The notebook in examples/ has ten cells; it runs, plots and shows what it says."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.pages import ROOT

FILE = ROOT / "examples" / "quickstart.ipynb"


def test_it_has_ten_cells_and_is_stored_without_outputs() -> None:
    notebook = nbformat.read(FILE, 4)
    nbformat.validate(notebook)
    assert len(notebook.cells) == 10
    assert [cell for cell in notebook.cells if cell.get("outputs")] == []
    text = "\n".join(cell.source for cell in notebook.cells)
    named = re.findall(r"`(docs/[\w.-]+)`", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the kernel's own sockets
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    notebook = nbformat.read(FILE, 4)
    # What the last cell says: the same until T*, and then statistics that stand still.
    check = nbformat.v4.new_code_cell(
        "same = plain[:16] == fixed[:16]\n"
        "print(same, moved(fixed_means)[15:], min(moved(plain_means)[15:]), plain[-1], fixed[-1])"
    )
    notebook.cells.append(check)
    NotebookClient(notebook, timeout=1200, kernel_name="python3").execute(cwd=str(tmp_path))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    words = outputs[-1].text.replace(", ", ",").split()
    assert words[:2] == ["True", str([0.0] * 15).replace(" ", "")]
    least, *accuracies = map(float, words[2:])
    assert least > 0
    assert min(accuracies) > 0.8
