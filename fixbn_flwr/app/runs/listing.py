"""List the runs in a folder: how far each is, how good, and whether it is running.

Only their JSON files are read, so that a list takes a moment.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fixbn_flwr.app.runs.lock import is_locked
from fixbn_flwr.app.runs.reader import CONFIG, METRICS, is_finished, read_config, read_metrics
from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.errors import ConfigError

State = Literal["running", "finished", "failed", "stopped"]


@dataclass(frozen=True)
class ListedRun:
    """A row of the list.

    Attributes:
        path: The run folder.
        config: The content of its config.json.
        rounds: The metrics of its rounds so far.
        state: "running" while a process has the folder locked; then "finished", "failed" if an
            error ended it, or "stopped".
    """

    path: Path
    config: dict[str, Any]
    rounds: list[RoundMetrics]
    state: State

    @classmethod
    def read(cls, path: Path) -> ListedRun:
        """Read a run folder.

        Raises:
            ConfigError: If its config or its metrics are damaged.
        """
        config = read_config(path)
        rounds = read_metrics(path) if (path / METRICS).is_file() else []
        return cls(path, config, rounds, _state(path, config))

    @property
    def accuracy(self) -> float | None:
        """The newest test accuracy, in [0, 1], or the clients' without one; None without both."""
        for found in (
            [m.test_accuracy for m in self.rounds],
            [m.validation_accuracy for m in self.rounds],
        ):
            if known := [accuracy for accuracy in found if accuracy is not None]:
                return known[-1]
        return None

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells of its row."""
        wanted = self.config["run_config"].get("num-server-rounds", "?")
        return (
            self.path.name,
            str(self.config.get("method", "?")),
            str(self.config["run_config"].get("task", "?")),
            f"{len(self.rounds)}/{wanted}",
            "-" if self.accuracy is None else f"{100 * self.accuracy:.1f}",
            self.state,
        )


def _state(path: Path, config: dict[str, Any]) -> State:
    if is_locked(path):
        return "running"
    if is_finished(path):
        return "finished"
    return "failed" if config.get("failure") else "stopped"


def runs_in(folder: Path) -> tuple[list[ListedRun], list[str]]:
    """Read the runs in a folder.

    Returns:
        The runs, the oldest first, and a message for each run that cannot be read.

    Raises:
        ConfigError: If the folder has no runs.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"there is no folder {folder}: name the folder that has the run folders. `fixbn run` "
            "creates them in ./runs, `flwr run` in ~/fixbn-runs."
        )
    found, problems = list[ListedRun](), list[str]()
    for file in sorted(folder.glob(f"*/{CONFIG}")):
        try:
            found.append(ListedRun.read(file.parent))
        except ConfigError as error:
            problems.append(str(error))
    if not found and not problems:
        if (folder / CONFIG).exists():
            raise ConfigError(f"{folder} is a run: name the folder with the runs, {folder.parent}.")
        raise ConfigError(
            f"{folder} has no run folders: `fixbn run` creates them in ./runs, `flwr run` in "
            "~/fixbn-runs."
        )
    return sorted(found, key=lambda run: str(run.config.get("started", ""))), problems


def run_table(runs: Sequence[ListedRun]) -> str:
    """Return a table in ASCII with one row per run."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.ASCII)
    for heading in ("run", "method", "task", "rounds", "accuracy %", "state"):
        right = heading in ("rounds", "accuracy %")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for run in runs:
        table.add_row(*run.cells)
    text = io.StringIO()
    # Wide enough for every name: a terminal may wrap lines, but names must stay whole.
    Console(file=text, width=1000, color_system=None, markup=False, emoji=False).print(table)
    return text.getvalue().rstrip("\n")
