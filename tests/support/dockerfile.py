"""Parses the Dockerfile."""

from __future__ import annotations

import re

from tests.support.machines import ROOT

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """Return the instructions with continued lines joined: `("RUN", "python -m venv ...")`."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]  # type: ignore[misc]
