"""Write the folder of a run while the run lasts.

    config.json          the resolved settings, versions, hardware, start time; why the run failed
    metrics.jsonl        one `RoundMetrics` per line
    final.safetensors    the model after the last round
    best.safetensors     the model with the best validation accuracy, with a `validation-share`
    summary.json         the `Summary`
    curves.png           accuracy and loss by round
    checkpoints/         the newest checkpoints, see `fixbn_flwr.persistence.checkpoints`

:mod:`fixbn_flwr.app.runs.creation` makes a folder, :mod:`fixbn_flwr.app.runs.reopening` takes the
folder of a stopped run again, and :mod:`fixbn_flwr.app.runs.reader` reads one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.figure import draw_curves, figure_title
from fixbn_flwr.app.runs.reader import CONFIG, METRICS, SUMMARY, line_of
from fixbn_flwr.app.runs.summary import (
    RoundMetrics,
    Summary,
    best_round,
    freeze_round_of,
    summarize,
)
from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.persistence.atomic_files import write_atomically


class RunFolder:
    """The folder of a run that is running.

    Models and JSON files are written whole or not at all. Every method that writes raises
    `CheckpointError` if it cannot, and leaves the previous files as they were.

    Args:
        path: The folder, absolute.
        settings: The run config.
        method: The run's label.
        clients: The number of the run's clients.
        run: Flower's id of the run when it was new; 0 without Flower.
        lock: Holds the folder's lock until the run ends.
        metrics: The rounds so far. Default: none.

    Attributes:
        lines: The lines of metrics.jsonl so far.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        *,
        method: str,
        clients: int,
        run: int,
        lock: ExitStack,
        metrics: Sequence[RoundMetrics] = (),
    ) -> None:
        self.path = path
        self.clients = clients
        self.run = run
        self.lines = [line_of(line) for line in metrics]
        self._settings = settings
        self._method = method
        self._metrics = list(metrics)
        self._lock = lock

    def metrics_of(self, server_round: int) -> RoundMetrics | None:
        """Return the metrics of a round; None if it has not ended yet."""
        return next((m for m in self._metrics if m.round == server_round), None)

    @property
    def best_round(self) -> RoundMetrics | None:
        """The first round with the highest validation accuracy; None without validation."""
        return best_round(self._metrics)

    def append(self, metrics: RoundMetrics) -> bool:
        """Add a round to metrics.jsonl; return whether its model is the best so far."""
        best = self.best_round
        self._metrics.append(metrics)
        self.lines.append(line_of(metrics))
        with writing(self.path), (self.path / METRICS).open("ab", buffering=0) as file:
            length = file.tell()
            try:
                line = self.lines[-1].encode()
                while line:  # a full disk may take part of it; the next write then raises
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(length)  # leave no partial line
                raise
        return self.best_round is not best

    def record_decision(self, freeze_round: int, reason: str) -> None:
        """Write T*, which the run has decided, to config.json."""
        self._add_to_config({"freeze_round": freeze_round, "freeze_reason": reason})

    @contextmanager
    def running(self) -> Iterator[None]:
        """Unlock the folder after the block; write an error that ends it to config.json."""
        try:
            yield
        except Exception as error:
            with suppress(CheckpointError):  # the disk may be full, which is the error then
                self._add_to_config({"failure": str(error) or type(error).__name__})
            raise
        finally:
            self._lock.close()

    def _add_to_config(self, entries: Mapping[str, object]) -> None:
        with writing(self.path):
            config = json.loads((self.path / CONFIG).read_text(encoding="utf-8"))
            write_atomically(self.path / CONFIG, json_bytes({**config, **entries}))

    def save_model(
        self, name: Literal["final", "best"], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> Path:
        """Write arrays by name to `<name>.safetensors`; the same arrays give the same bytes."""
        # safetensors sorts by dtype and name, but writes an array's memory as it is, so that must
        # be in C order. asarray keeps a 0-d counter 0-d; ascontiguousarray does not.
        in_c_order = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        path = self.path / f"{name}.safetensors"
        with writing(self.path):
            write_atomically(path, safetensors.numpy.save(in_c_order))
        return path

    def finish(self) -> Summary:
        """Write summary.json and curves.png, and return the summary."""
        freeze_round = freeze_round_of(self._metrics)
        summary = summarize(self._metrics, freeze_round)
        with writing(self.path):
            draw_curves(
                {self._method: self._metrics},
                freeze_round,
                self.path / "curves.png",
                title=figure_title(self._settings, self.clients),
            )
            write_atomically(self.path / SUMMARY, json_bytes(dataclasses.asdict(summary)))
        return summary


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a `CheckpointError` about this run folder."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}). Make room on its disk or repair it, and resume "
            "the run; its earlier files are intact."
        ) from error


def json_bytes(content: Mapping[str, object]) -> bytes:
    """Return the content of a JSON file, indented."""
    return (json.dumps(content, indent=2) + "\n").encode()
