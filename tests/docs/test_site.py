"""Code on the documentation site is not cut off at 1280 pixels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import DOCS, ROOT

# Measured in Chromium with these settings: about 122 columns fit beside the navigation.
COLUMNS = 112


def test_the_site_leaves_room_for_code() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "\n    - toc.integrate" in settings
    assert "\nextra_css: [wide-code.css]\n" in settings
    assert "font-size: 0.75em" in (DOCS / "wide-code.css").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_no_line_of_code_is_longer(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```(?:python|bash)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    assert [line for block in blocks for line in block.splitlines() if len(line) > COLUMNS] == []
