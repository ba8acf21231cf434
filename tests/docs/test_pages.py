"""Tables and lists in README and docs agree with the code that they describe."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

import pytest

from fixbn_flwr.app.config.key_table import key_table
from fixbn_flwr.tasks import TASKS
from tests.support.pages import DOCS, ROOT, marked, page, table_rows


def test_the_run_config_table_is_the_one_of_the_code() -> None:
    assert marked(page("run-config.md"), "run config") == key_table()


def test_every_task_has_its_row() -> None:
    assert [row[0].strip("`") for row in table_rows(page("tasks.md"))] == list(TASKS)


def test_every_promise_names_a_test_that_exists() -> None:
    rows = table_rows(page("what-is-promised.md"))
    assert len(rows) > 15
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[2])
        assert tests, row
        for file, test in tests:
            assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), test


def literals() -> str:
    """Return all strings of the package, one per line; an expression in one is a space."""
    found = []
    for module in sorted((ROOT / "fixbn_flwr").rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else " " for p in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_every_explained_message_is_one_of_the_code() -> None:
    rows = table_rows(page("add-to-your-project.md").partition("## What the messages mean")[2])
    assert len(rows) > 10
    texts = literals()
    parts = [
        part.strip() for row in rows for part in re.findall(r"`(.*?)`", row[0])[0].split("...")
    ]
    assert [part for part in parts if part not in texts] == []


def test_make_does_what_the_pages_say() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nfixbn compare\n" in page("quick-start.md")
    assert "$(BIN)/fixbn compare" in makefile
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    test_line = re.search(r"`make test` is `(.*)`", contributing)
    assert test_line
    for command in test_line[1].split(" && "):
        assert command.removeprefix("pytest") in makefile, command
        assert command.split()[0] in makefile, command


def test_the_map_names_every_package() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = contributing.partition("```text\n")[2].partition("\n```")[0]
    named = set(re.findall(r"[\w.]+", " ".join(line[:23] for line in tree.splitlines())))
    entries = {path.name for path in (ROOT / "fixbn_flwr").iterdir()}
    assert entries - {"__init__.py", "__pycache__", "py.typed"} <= named


def checks_of_the_example() -> dict[str, Callable[[], None]]:
    code = page("test-without-ray.md").partition("```python\n")[2].partition("\n```")[0]
    namespace: dict[str, Any] = {}
    exec(compile(code, "test-without-ray.md", "exec"), namespace)
    return {name: value for name, value in namespace.items() if name.startswith("test_")}


@pytest.mark.parametrize(
    "name", ["test_fedavg_averages_the_clients", "test_a_lost_message_does_not_stop_the_round"]
)
def test_the_example_of_tests_without_ray_passes(name: str) -> None:
    checks_of_the_example()[name]()


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert [name for name in pages if f" {name}\n" not in navigation] == []
