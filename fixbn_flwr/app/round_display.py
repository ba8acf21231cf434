"""Show a run's rounds while it runs: a progress bar on a terminal, a line each anywhere else."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from fixbn_flwr.app.runs.summary import round_line, score_name

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fixbn_flwr.app.config.settings import Settings
    from fixbn_flwr.app.runs.summary import RoundMetrics


def has_terminal() -> bool:
    """Return whether somebody watches: standard output is a terminal, and not that of a CI."""
    if sys.stdout is None:  # as in a program without a console
        return False
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


class RoundDisplay:
    """Shows the rounds of one run.

    What is printed or logged while the bar is there appears above it.

    Args:
        settings: The run config.
        rounds_done: The number of rounds that are done. Default: 0.
    """

    def __init__(self, settings: Settings, rounds_done: int = 0) -> None:
        self._settings = settings
        self._rounds_done = rounds_done
        self._accuracy = ""
        self._bar: tuple[Progress, TaskID] | None = None
        self._log_streams: list[tuple[logging.StreamHandler[Any], Any]] = []

    def start(self) -> None:
        """Draw the bar, on a terminal."""
        if not has_terminal():
            return
        rounds = self._settings.num_server_rounds
        progress = _progress(rounds)
        task = progress.add_task("", total=rounds, completed=self._rounds_done, state="")
        progress.start()
        self._bar = (progress, task)
        # Handlers keep the stream that they were made with, which the bar would be drawn over.
        for handler in logging.getLogger("flwr").handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream.isatty():
                self._log_streams.append((handler, handler.setStream(sys.stderr)))

    def show(self, metrics: RoundMetrics) -> None:
        """Show a round that has ended."""
        if self._bar is None:
            print(round_line(metrics, self._settings))
            return
        progress, task = self._bar
        progress.update(task, completed=metrics.round, state=self._state(metrics))

    def close(self) -> None:
        """Leave the bar as it is, and give the terminal back."""
        if self._bar is not None:
            (progress, _), self._bar = self._bar, None
            progress.stop()
        while self._log_streams:
            handler, stream = self._log_streams.pop()
            handler.setStream(stream)

    def _state(self, metrics: RoundMetrics) -> str:
        parts = [metrics.phase.value] if self._settings.may_freeze else []
        loss = metrics.train_loss
        parts.append("no client" if loss is None else f"loss {loss:.3f}")
        # The accuracy of an earlier round stays in one without.
        if metrics.test_accuracy is not None:
            self._accuracy = f"{score_name(self._settings)} {metrics.test_accuracy:.1%}"
        elif self._settings.evaluate_every == 0 and metrics.validation_accuracy is not None:
            score = f"{score_name(self._settings)} {metrics.validation_accuracy:.1%}"
            self._accuracy = f"clients' {score}"
        return "  ".join([*parts, self._accuracy]).rstrip()


def _progress(rounds: int) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class TimeLeft(TimeRemainingColumn):
        def render(self, task: Task) -> Text:
            time = super().render(task)  # the time that it took, in the end
            return time if task.finished else time + " left"

    def kept(width: int) -> Column:
        """Return a column that keeps this width in a narrow terminal, where the others wrap."""
        return Column(no_wrap=True, min_width=width)

    counted = "round {task.completed:.0f}/{task.total:.0f}"
    return Progress(
        TextColumn(counted, table_column=kept(len(f"round {rounds}/{rounds}")), markup=False),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TextColumn("{task.fields[state]}", table_column=Column(), markup=False),
        TimeLeft(elapsed_when_finished=True, table_column=kept(len("0:00:00 left"))),
        console=Console(soft_wrap=True),  # what is printed above the bar can be copied
        expand=True,
        speed_estimate_period=86400.0,  # in seconds: a round may take long
    )


def log_over_bar() -> None:
    """Let the log lines of a worker process, which does not have the bar, replace its line.

    The bar is drawn again below them.
    """
    if has_terminal():
        for handler in logging.getLogger("flwr").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(_OverBar(handler.stream))


class _OverBar:
    """Clears the line of the terminal before each text that is written to a stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.flush = stream.flush

    def write(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}")
