"""The colour, line style and marker of each method, the same in every figure of the project.

The colours are Okabe and Ito's, which colour-blind readers can distinguish. Each method also has
its own dashes and marker, so that a figure works in greyscale.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

METHODS = ("FixBN", "BN", "GN", "LN", "IN", "FixUp", "centralised")


class Style(NamedTuple):
    """How the lines and points of a method look; the fields are matplotlib's."""

    color: str
    dashes: str
    marker: str


# Those of METHODS, in their order.
_STYLES = (
    Style("#0072B2", "-", "o"),
    Style("#D55E00", "--", "s"),
    Style("#009E73", "-.", "^"),
    Style("#CC79A7", ":", "D"),
    Style("#56B4E9", "-", "v"),
    Style("#E69F00", "--", "P"),
    Style("#000000", "-.", "X"),
)


def styles_of(methods: Iterable[str]) -> list[Style]:
    """Return a style for each line of a figure. All differ in colour or marker.

    The first line of a method in METHODS has the method's own style. Other lines have those of the
    methods that the figure does not show, but never the colour of FixBN or BN.

    Examples:
        >>> [style.color for style in styles_of(["BN", "FixBN", "mine", "FixBN"])]
        ['#D55E00', '#0072B2', '#009E73', '#CC79A7']

    Args:
        methods: The method of each line, at most 35.
    """
    methods = list(methods)
    others = _others(methods)
    given = set[str]()
    styles = []
    for method in methods:
        own = method in METHODS and method not in given
        given.add(method)
        styles.append(_style(METHODS.index(method) if own else next(others)))
    return styles


def _others(methods: list[str]) -> Iterator[int]:
    """Yield the numbers of the styles that no method of the figure has."""
    for number in itertools.count(2):
        shown = number < len(METHODS) and METHODS[number] in methods
        if number % len(METHODS) > 1 and not shown:  # from the second time on, with other markers
            yield number


def _style(number: int) -> Style:
    color, dashes, _ = _STYLES[number % len(_STYLES)]
    return Style(color, dashes, _STYLES[(number + number // len(_STYLES)) % len(_STYLES)].marker)
