"""Links and paths of the documentation lead to files of the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import DOCS, ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "deploy" / "README.md",
    ROOT / "simulation" / "results" / "README.md",
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted(DOCS.rglob("*.md")),
]
FOLDERS = "deploy|docs|examples|fixbn_flwr|simulation|tests"


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_every_link_to_a_file_leads_to_one(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    files = [target.partition("#")[0] for target in targets if "://" not in target]
    assert [file for file in files if not (path.parent / file).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=ids)
def test_every_path_of_the_repository_exists(path: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", path.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []
