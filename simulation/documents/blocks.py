"""Generated blocks of a page: the text between `<!-- name -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

Blocks = Mapping[str, Callable[[], str]]
"""Returns the text of each block of a page, by name."""


def filled(page: str, blocks: Blocks) -> str:
    """Return a page with its blocks filled; a block on one line stays on one line.

    Raises:
        KeyError: If the page lacks one of the blocks.

    Example:
        >>> filled("It ends at <!-- end of BN -->?<!-- end --> %.", {"end of BN": lambda: "28.7"})
        'It ends at <!-- end of BN -->28.7<!-- end --> %.'
    """
    for name, text in blocks.items():
        pattern = re.compile(rf"<!-- {re.escape(name)} -->(.*?)<!-- end -->", re.DOTALL)
        found = pattern.search(page)
        if found is None:
            raise KeyError(f"no block <!-- {name} --> in the page")
        line = "\n" if found[1].startswith("\n") else ""
        block = f"<!-- {name} -->{line}{text()}{line}<!-- end -->"
        page = page[: found.start()] + block + page[found.end() :]
    return page
