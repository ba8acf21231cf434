"""What a report needs of a run folder, whatever version of the package wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.figure import figure_title
from fixbn_flwr.app.runs.line_styles import METHODS, Style, styles_of
from fixbn_flwr.app.runs.reader import is_finished, read_config, read_metrics
from fixbn_flwr.app.runs.summary import RoundMetrics, Summary, freeze_round_of, summarize
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import find_task


@dataclass(frozen=True)
class ReportedRun:
    """A run folder that was read.

    Attributes:
        path: The folder.
        label: Its name, with as many parents as make it differ from those of the other runs.
        config: The content of config.json.
        rounds: The metrics of its rounds so far.
        style: What its curves look like.
    """

    path: Path
    label: str
    config: dict[str, Any]
    rounds: list[RoundMetrics]
    style: Style

    @property
    def freeze_round(self) -> int | None:
        """T*; None if nothing has been frozen yet."""
        return freeze_round_of(self.rounds)

    @property
    def summary(self) -> Summary:
        """The summary of the rounds so far."""
        return summarize(self.rounds, self.freeze_round)

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete."""
        return is_finished(self.path)

    @property
    def setting(self) -> str:
        """The data set and how it is divided, such as "digits, 10 clients, 2 classes each"."""
        clients = int(self.config["clients"])
        try:
            return figure_title(self.settings(), clients)
        except ConfigError:  # a task that cannot be imported here
            return f"{self.config['run_config'].get('task')}, {clients} clients"

    @property
    def score(self) -> str:
        """What the run's "accuracy" is: accuracy, or mean IoU of a segmentation."""
        try:
            task = find_task(str(self.config["run_config"].get("task")))
        except ConfigError:
            return "accuracy"
        return "accuracy" if task.masks is None else "mean IoU"

    def settings(self) -> Settings:
        """Return the validated run config.

        Raises:
            ConfigError: If it is not valid here: its task cannot be imported, or another version
                wrote it.
        """
        return Settings.from_run_config(self.config["run_config"])


def read_runs(paths: Sequence[Path]) -> list[ReportedRun]:
    """Read run folders.

    Raises:
        ConfigError: If a path is not a run folder, two are the same, or there are too many.
    """
    if len(paths) > len(METHODS):
        raise ConfigError(
            f"{len(paths)} runs are given, but a report has lines for {len(METHODS)} that readers "
            "can tell apart without colors: name fewer runs."
        )
    folders = [path.expanduser().absolute() for path in paths]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise ConfigError(f"{folder} is given twice: name each run once.")
    configs = [read_config(folder) for folder in folders]
    styles = styles_of(str(config.get("method")) for config in configs)
    return [
        ReportedRun(folder, label, config, read_metrics(folder), style)
        for folder, label, config, style in zip(
            folders, _labels(folders), configs, styles, strict=True
        )
    ]


def _labels(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that differ from each other."""
    longest = max(len(folder.parts) for folder in folders)
    for length in range(1, longest + 1):
        labels = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    raise AssertionError("the folders differ")
