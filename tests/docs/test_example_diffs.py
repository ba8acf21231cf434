"""The examples' diffs are those between their files, and ten lines at most.

`python tests/test_example_diffs.py` writes the diffs anew.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["message-api", "numpy-client", "own-start"]


def sources(project: Path) -> dict[str, list[str]]:
    """A project's source files, by their path in it."""
    return {
        str(path.relative_to(project)): path.read_text(encoding="utf-8").splitlines(keepends=True)
        for path in sorted(project.rglob("*"))
        if path.suffix in {".py", ".toml"}
    }


def diff_of(name: str) -> str:
    before, after = (sources(EXAMPLES / name / side) for side in ("before", "after"))
    assert list(before) == list(after)
    return "".join(
        line
        for file in before
        for line in difflib.unified_diff(
            before[file], after[file], f"before/{file}", f"after/{file}"
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_diff_is_that_between_the_two_projects(name: str) -> None:
    written = (EXAMPLES / name / "fixbn.diff").read_text(encoding="utf-8")
    assert written == diff_of(name), f"{name}: run python {__file__}"


@pytest.mark.parametrize("name", NAMES)
def test_fixbn_changes_ten_lines_at_most(name: str) -> None:
    lines = (EXAMPLES / name / "fixbn.diff").read_text(encoding="utf-8").splitlines()
    changed = [line for line in lines if line[:1] in {"+", "-"} and line[:3] not in {"+++", "---"}]
    assert 0 < len(changed) <= 10, "\n".join(changed)


def test_the_examples_share_their_task_and_run_config() -> None:
    older, newer = (sources(EXAMPLES / name / "before") for name in ("numpy-client", "message-api"))
    assert older.keys() == newer.keys()
    task = newer["digits_example/task.py"]
    assert older["digits_example/task.py"][: len(task)] == task
    start = "[tool.flwr.app]\n"
    own_start = sources(EXAMPLES / "own-start" / "before")
    for same in ("digits_example/task.py", "digits_example/client_app.py"):
        assert own_start[same] == newer[same], same
    settings = [project["pyproject.toml"] for project in (older, newer)]
    assert settings[0][settings[0].index(start) :] == settings[1][settings[1].index(start) :]


if __name__ == "__main__":
    for example in NAMES:
        (EXAMPLES / example / "fixbn.diff").write_text(diff_of(example), encoding="utf-8")
