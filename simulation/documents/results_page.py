"""The blocks of docs/results.md and of the README: BN or FixBN."""

from __future__ import annotations

from simulation.documents.blocks import Blocks
from simulation.documents.tables_page import shown
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


BLOCKS: Blocks = {"when to use": when_to_use}
