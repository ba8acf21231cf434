"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        text: What it is, with its numbers.
        remedy: What to do about it; empty if nothing is wrong.
        optional: Whether most runs work without the remedy. Default: no.
    """

    text: str
    remedy: str = ""
    optional: bool = False

    @property
    def is_problem(self) -> bool:
        """Whether runs will fail."""
        return bool(self.remedy) and not self.optional

    def __str__(self) -> str:
        """Return the line, with the remedy in a second one."""
        label = "problem" if self.is_problem else "note" if self.remedy else "ok"
        line = f"{label:<8} {self.text}"
        return f"{line}\n{'':<8} -> {self.remedy}" if self.remedy else line
