from __future__ import annotations

import pytest

from simulation.documents.tables_page import _not_behind
from simulation.reporting.grouping import Cell

CLOSE = Cell({0: 50.0, 1: 51.0, 2: 52.0}, 0)
AHEAD = Cell({0: 60.0, 1: 61.0, 2: 62.1}, 0)
ABOUT_AS_FAR = Cell({0: 59.0, 1: 62.0, 2: 61.0}, 0)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"BN": CLOSE, "FixBN": AHEAD}, ["FixBN"]),
        ({"BN": CLOSE, "FixBN": AHEAD, "GN": ABOUT_AS_FAR}, ["FixBN", "GN"]),
        # One that diverged with a seed is not recommended, however good the others are.
        ({"BN": CLOSE, "FixBN": Cell({0: 90.0, 1: 91.0}, 1)}, ["BN"]),
        # Nothing is decided with one seed, or without results.
        ({"BN": CLOSE, "FixBN": Cell({0: 90.0}, 0)}, []),
        ({"BN": CLOSE, "FixBN": Cell({}, 0)}, []),
    ],
)
def test_a_method_is_named_if_it_is_behind_no_other(
    cells: dict[str, Cell], expected: list[str]
) -> None:
    assert _not_behind(cells) == expected
