"""The blocks of docs/results.md and of the README."""

from __future__ import annotations

from collections.abc import Callable

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


def difference(name: str, axis: str, value: str, word: str) -> Callable[[], str]:
    """Return the block with the difference of FixBN and BN within a sentence: "+8.0 ± 3.1".

    The block raises a ValueError if the data does not allow the word that the sentence uses.
    """

    def text() -> str:
        fixbn, bn = (place(shown(name), {axis: value}, method) for method in ("FixBN", "BN"))
        found = fixbn.minus(bn)
        if found.word != word:
            raise ValueError(f"{name}, {value}: the page says {word}, the data {found.word}")
        return f"{found.mean:+.1f} ± {found.half:.1f}"

    return text


SETTINGS = {
    "two classes, 1 step": "ahead",
    "two classes, 5 steps": "ahead",
    "Dirichlet 0.1, 1 step": "ahead",
    "Dirichlet 0.1, 5 steps": "ahead",
    "Dirichlet 0.1, 20 steps": "behind",
    "IID, 1 step": "behind",
}
BLOCKS: Blocks = {
    "when to use": when_to_use,
    **{
        f"FixBN, {setting}": difference("when-to-use", "setting", setting, word)
        for setting, word in SETTINGS.items()
    },
    "PACS": difference("feature-shift", "data", "PACS by domain, half size", "ahead"),
    "CamVid": difference("segmentation", "scenes", "CamVid, half size", "behind"),
}
README_BLOCKS: Blocks = {"when to use": when_to_use}
