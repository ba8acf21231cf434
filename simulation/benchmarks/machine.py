"""The machine of a measurement, and the report of the measurement as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fixbn_flwr.app.runs.environment import hardware, versions


@dataclass
class Machine:
    """The machine of a measurement, and its load before and after."""

    command: str = field(default_factory=lambda: " ".join(sys.orig_argv))
    date: str = field(default_factory=lambda: datetime.now().astimezone().isoformat("T", "seconds"))
    hardware: dict[str, Any] = field(default_factory=hardware)
    versions: dict[str, str] = field(default_factory=versions)
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)
    load_after: tuple[float, float, float] | None = None

    def __str__(self) -> str:
        """Return the machine in one line."""
        loads = [f"{load[0]:.1f}" for load in (self.load_before, self.load_after) if load]
        names = " ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.hardware['cpu']}, {self.hardware['cores']} cores; {names}; "
            f"load {' -> '.join(loads)}; {self.date}"
        )


def progress(line: str) -> None:
    """Print a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def write_report(output: Path | None, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, if an output file is given."""
    if output is not None:
        output.write_text(json.dumps(report, indent=2) + "\n")
        print(f"Report: {output}")
