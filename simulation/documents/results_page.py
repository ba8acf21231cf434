"""The blocks of docs/results.md and of the README."""

from __future__ import annotations

from collections.abc import Callable

from simulation.documents.blocks import Blocks
from simulation.documents.tables_page import NOT_YET, shown
from simulation.reporting.grouping import place, values
from simulation.reporting.tables import markdown


def when_to_use() -> str:
    """Return BN, FixBN with T* at half of the rounds, and their difference, by setting."""
    results = shown("when-to-use")
    rows = []
    for setting in values(results, "setting"):
        bn, fixbn = (place(results, {"setting": setting}, name) for name in ("BN", "FixBN"))
        rows.append([setting, str(bn), str(fixbn), str(fixbn.minus(bn))])
    return markdown(["clients' data, local steps", "BN", "FixBN", "FixBN - BN"], rows, 3)


def difference(
    name: str, axis: str, value: str, one: str = "FixBN", other: str = "BN", grid: str = "main"
) -> Callable[[], str]:
    """Return the block with a difference of two methods within a sentence: "+8.0 ± 3.1"."""

    def text() -> str:
        results = shown(name, grid)
        cells = [place(results, {axis: value}, method) for method in (one, other)]
        if not all(cell.runs for cell in cells):
            return NOT_YET
        found = cells[0].minus(cells[1])
        return f"{found.mean:+.1f} ± {found.half:.1f}"

    return text


SETTINGS = (
    "two classes, 1 step", "two classes, 5 steps", "Dirichlet 0.1, 1 step",
    "Dirichlet 0.1, 5 steps", "Dirichlet 0.1, 20 steps", "IID, 1 step",
)  # fmt: skip
BLOCKS: Blocks = {
    "when to use": when_to_use,
    **{f"FixBN, {setting}": difference("when-to-use", "setting", setting) for setting in SETTINGS},
    "PACS": difference("feature-shift", "data", "PACS by domain, half size"),
    "CamVid": difference("segmentation", "scenes", "CamVid, half size"),
}
README_BLOCKS: Blocks = {"when to use": when_to_use}
