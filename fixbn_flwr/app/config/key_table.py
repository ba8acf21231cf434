"""The table of run-config keys in the documentation.

`python -m fixbn_flwr.app.config.key_table` prints it.
"""

from __future__ import annotations

import dataclasses
import json

from fixbn_flwr.app.config import rules
from fixbn_flwr.app.config.rules import key_of
from fixbn_flwr.app.config.settings import Settings


def key_table() -> str:
    """Return a Markdown table of all run-config keys."""
    lines = ["| key | default | unit | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(Settings):
        rule: rules.Rule = field.metadata["rule"]
        words = ", ".join(f"`{word}`" for word in rules.choices_of(field))
        more = f", or `{rule.pattern.example}` {rule.pattern.meaning}" if rule.pattern else ""
        limits = f"one of {words}{more}" if words else rule.bounds
        allowed = f" ({limits})" if limits else ""
        default = json.dumps(field.default)
        lines.append(
            f"| `{key_of(field.name)}` | `{default}` | {rule.unit} | {rule.meaning}{allowed} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(key_table())
