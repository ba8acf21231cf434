"""The blocks of docs/results.md and of the README."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from simulation.documents.blocks import Blocks
from simulation.documents.tables_page import shown
from simulation.reporting.grouping import place, values
from simulation.reporting.tables import markdown

Place = tuple[str, Mapping[str, str]]
"""A method, and its values on the axes."""


def when_to_use() -> str:
    """Return BN, FixBN with T* at half of the rounds, and their difference, by setting."""
    results = shown("when-to-use")
    rows = []
    for setting in values(results, "setting"):
        bn, fixbn = (place(results, {"setting": setting}, name) for name in ("BN", "FixBN"))
        rows.append([setting, str(bn), str(fixbn), str(fixbn.minus(bn))])
    return markdown(["clients' data, local steps", "BN", "FixBN", "FixBN - BN"], rows, 3)


def difference(name: str, one: Place, other: Place, word: str) -> Callable[[], str]:
    """Return the block with the difference of two places within a sentence: "+8.0 ± 3.1".

    The block raises a ValueError if the data does not allow the word that the sentence uses.
    """

    def text() -> str:
        results = shown(name)
        cell, subtracted = (place(results, setting, method) for method, setting in (one, other))
        found = cell.minus(subtracted)
        if found.word != word:
            where = ", ".join([name, one[0], *one[1].values()])
            raise ValueError(f"{where}: the page says {word}, the data {found.word}")
        return f"{found.mean:+.1f} ± {found.half:.1f}"

    return text


def gain(name: str, axis: str, value: str, word: str) -> Callable[[], str]:
    """Return the block with the difference of FixBN and BN at a value of an axis."""
    return difference(name, ("FixBN", {axis: value}), ("BN", {axis: value}), word)


def of_momentum(
    method: str, participation: str, one: str, other: str, word: str
) -> Callable[[], str]:
    """Return the block with the difference of two places of momentum."""
    first, second = (
        (method, {"participation": participation, "momentum": kept}) for kept in (one, other)
    )
    return difference("momentum", first, second, word)


SETTINGS = {
    "two classes, 1 step": "ahead",
    "two classes, 5 steps": "ahead",
    "Dirichlet 0.1, 1 step": "ahead",
    "Dirichlet 0.1, 5 steps": "ahead",
    "Dirichlet 0.1, 20 steps": "behind",
    "IID, 1 step": "behind",
}
# GN with two classes and one local step, and momentum that is kept instead of reset.
OF_BOTH_PAGES: Blocks = {
    "when to use": when_to_use,
    "GN - BN": difference(
        "frequency", ("GN", {"local steps": "1"}), ("BN", {"local steps": "1"}), "ahead"
    ),
    "momentum kept": of_momentum("FixBN", "full", "local", "reset", "ahead"),
}
BLOCKS: Blocks = {
    **OF_BOTH_PAGES,
    **{
        f"FixBN, {setting}": gain("when-to-use", "setting", setting, word)
        for setting, word in SETTINGS.items()
    },
    "FixBN against BN, both with momentum": gain(
        "when-to-use", "setting", "two classes, 5 steps", "ahead"
    ),
    "PACS": gain("feature-shift", "data", "PACS by domain, half size", "ahead"),
    "CamVid": gain("segmentation", "scenes", "CamVid, half size", "behind"),
    "old momentum, BN": of_momentum("BN", "20 %", "local", "global", "behind"),
    "old momentum, FixBN": of_momentum("FixBN", "20 %", "local", "global", "behind"),
}
README_BLOCKS: Blocks = OF_BOTH_PAGES
