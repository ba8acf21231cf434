"""The table of run-config keys in the documentation.

`python -m fixbn_flwr.app.config.key_table` prints it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from fixbn_flwr.app.config import rules
from fixbn_flwr.app.config.rules import key_of
from fixbn_flwr.app.config.settings import Settings


def key_table() -> str:
    """Return a Markdown table of all run-config keys."""
    lines = ["| key | default | unit | meaning |", "| --- | --- | --- | --- |"]
    for key, default, unit, meaning in _keys():
        lines.append(f"| `{key}` | `{default}` | {unit} | {meaning} |")
    return "\n".join(lines)


def key_list() -> list[tuple[str, str]]:
    """Return each run-config key with its default, and its meaning, for the command line's help."""
    return [(f"{key}={default}", meaning.replace("`", "")) for key, default, _, meaning in _keys()]


def _keys() -> Iterator[tuple[str, str, str, str]]:
    """Yield key, default as in TOML, unit, and meaning with what is allowed."""
    for field in dataclasses.fields(Settings):
        rule: rules.Rule = field.metadata["rule"]
        words = ", ".join(f"`{word}`" for word in rules.choices_of(field))
        more = f", or `{rule.pattern.example}` {rule.pattern.meaning}" if rule.pattern else ""
        is_number = field.type in rules.NUMBERS
        limits = f"one of {words}{more}" if words else rule.bounds
        if is_number and words:
            limits = f"{rule.bounds}, or {words}"
        allowed = f" ({limits})" if limits else ""
        yield key_of(field.name), json.dumps(field.default), rule.unit, f"{rule.meaning}{allowed}"


if __name__ == "__main__":
    print(key_table())
