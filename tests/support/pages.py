"""Pages of the documentation, and the marked tables in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"


def page(name: str) -> str:
    """Return the text of a page in docs/."""
    return (DOCS / name).read_text(encoding="utf-8")


def marked(text: str, marker: str) -> str:
    """Return the text between `<!-- marker -->` and `<!-- end -->`."""
    found = re.search(rf"<!-- {re.escape(marker)} -->(.*?)<!-- end -->", text, re.DOTALL)
    assert found, f"nothing is marked {marker!r}"
    return found[1].strip()


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of all table rows, without headers and rules."""
    lines = text.splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for number, line in enumerate(lines)
        if line.startswith("| ") and not any("---" in near for near in lines[number : number + 2])
    ]
