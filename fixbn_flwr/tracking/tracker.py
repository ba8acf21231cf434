"""What every tracker can do, and what it is told about the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Scalar = bool | int | float | str


@dataclass(frozen=True)
class TrackedRun:
    """A run, as trackers see it.

    Attributes:
        folder: The run's folder, absolute.
        config: What is set in the run, by name.
        first_round: The first round to log. Above 1 if the run was resumed.
        identity: A random name that the run keeps when it is resumed.
    """

    folder: Path
    config: Mapping[str, Scalar]
    first_round: int
    identity: str


class Tracker(Protocol):
    """Logs one run with one library. Any method may raise anything."""

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Log a round's metrics."""

    def log_figure(self, path: Path) -> None:
        """Log a PNG file."""

    def log_model(self, path: Path) -> None:
        """Log a model file."""

    def close(self, *, failed: bool) -> None:
        """End the run."""
