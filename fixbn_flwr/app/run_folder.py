"""The folder of one run: its config, a line of metrics a round, models, a summary and a figure.

    config.json          the resolved settings, versions, hardware, start time
    metrics.jsonl        one `RoundMetrics` a line
    final.safetensors    the model after the last round; best.safetensors: at its best test accuracy
    summary.json         the `Summary`
    curves.png           accuracy and loss by round

A run folder is never overwritten; its models and JSON files are whole or not there.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from fixbn_flwr.app.config import Settings
from fixbn_flwr.app.figure import draw_curves, figure_title
from fixbn_flwr.app.machine import hardware, versions
from fixbn_flwr.app.summary import RoundMetrics, Summary, best_round, summarize
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.files import write_atomically
from fixbn_flwr.schedule import Phase

_METRICS = "metrics.jsonl"


class RunFolder:
    """A run's folder while the run lasts; made by `create`.

    `path` is absolute.
    """

    def __init__(self, path: Path, settings: Settings, method: str, clients: int) -> None:
        self.path = path
        self._settings = settings
        self._method = method
        self._clients = clients
        self._metrics: list[RoundMetrics] = []

    @classmethod
    def create(
        cls, settings: Settings, *, method: str, clients: int, when: datetime | None = None
    ) -> "RunFolder":
        """Makes `<output-dir>/<run-name>` and writes config.json into it.

        `method` is the run's label; `clients` is the number of all its clients; `when` is its
        start, by default now. A name made from the time gets a number behind it when it is
        taken already.

        Raises `ConfigError` when a run of the given name exists, or when the folder cannot be
        made or written (no permission, not a directory, full disk); nothing is left behind then.
        """
        when = when or datetime.now().astimezone()
        root = Path(os.path.abspath(os.path.expanduser(settings.output_dir or "~/fixbn-runs")))
        config = {
            "run_config": settings.as_run_config(),
            "method": method,
            "freeze_round": settings.freeze_round,
            "clients": clients,
            "started": when.isoformat(timespec="seconds"),
            "versions": versions(),
            "hardware": hardware(),
        }
        path, made = None, list[Path]()
        try:
            made += [folder for folder in (root, *root.parents) if not folder.exists()]
            root.mkdir(parents=True, exist_ok=True)
            path = _claim(root, settings, method, when)
            write_atomically(path / "config.json", _json(config))
        except (OSError, ValueError) as error:
            if path:
                shutil.rmtree(path, ignore_errors=True)
            for folder in made:
                # It was never made, or another run has begun in it meanwhile.
                with contextlib.suppress(OSError, ValueError):
                    folder.rmdir()
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"output-dir = {json.dumps(settings.output_dir)}: cannot make a run folder in "
                f"{root} ({error}); name a directory that can be written, with room on its disk"
            ) from error
        return cls(path, settings, method, clients)

    def append(self, metrics: RoundMetrics) -> bool:
        """Adds a round to metrics.jsonl; True when its test accuracy is the best so far."""
        best = best_round(self._metrics)
        self._metrics.append(metrics)
        with self._writing(), (self.path / _METRICS).open("ab", buffering=0) as file:
            length = file.tell()
            try:
                line = _line(metrics).encode()
                while line:  # a write may take part of it, and the next one says why
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(length)  # no half line
                raise
        return best_round(self._metrics) is not best

    def save_model(
        self, name: Literal["final", "best"], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> Path:
        """Writes arrays, by name, to `<name>.safetensors`; the same arrays give the same bytes."""
        # safetensors sorts by dtype and name, but writes an array's memory as it lies, so that must
        # be C order; asarray keeps a 0-d counter 0-d, which ascontiguousarray would not.
        in_c_order = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        path = self.path / f"{name}.safetensors"
        with self._writing():
            write_atomically(path, safetensors.numpy.save(in_c_order))
        return path

    def finish(self) -> Summary:
        """Writes summary.json and curves.png from the rounds appended, and returns the summary."""
        summary = summarize(self._metrics, self._settings)
        with self._writing():
            write_atomically(self.path / "summary.json", _json(dataclasses.asdict(summary)))
            draw_curves(
                {self._method: self._metrics},
                self._settings.freeze_round,
                self.path / "curves.png",
                title=figure_title(self._settings, self._clients),
            )
        return summary

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"output-dir = {json.dumps(self._settings.output_dir)}: cannot write to {self.path}"
                f" ({error}); what was there before is whole. Make room on its disk, or name "
                "another directory"
            ) from error


def read_metrics(folder: Path) -> list[RoundMetrics]:
    """The rounds of a run folder; `ConfigError` when it has none or a line is damaged."""
    path = folder / _METRICS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            f"{folder} is not the folder of a run: cannot read {path.name}"
        ) from error
    rounds = []
    for number, line in enumerate(lines, start=1):
        try:
            rounds.append(_from_line(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{path}, line {number}: not a round's metrics ({error})") from error
    return rounds


def _line(metrics: RoundMetrics) -> str:
    # JSON has no NaN: a run that diverged writes "nan" or "inf" as text, which any reader takes.
    fields = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in dataclasses.asdict(metrics).items()
    }
    return json.dumps(fields, allow_nan=False) + "\n"


def _from_line(line: str) -> RoundMetrics:
    fields = json.loads(line)
    phase = Phase(fields.pop("phase"))
    values: dict[str, Any] = {
        key: float(v) if isinstance(v, str) else v for key, v in fields.items()
    }
    return RoundMetrics(phase=phase, **values)


def _claim(root: Path, settings: Settings, method: str, when: datetime) -> Path:
    """Makes the run's own, new folder in `root`."""
    if settings.run_name:
        path = root / settings.run_name
        try:
            path.mkdir()
        except FileExistsError:
            raise ConfigError(
                f"run-name = {json.dumps(settings.run_name)}: {path} is there already, and a run "
                "is never overwritten; choose another run-name, or leave it empty"
            ) from None
        return path
    name = f"{when:%Y%m%d-%H%M%S}-{settings.task_name}-{method.replace(' ', '-')}"
    for number in itertools.count(1):
        path = root / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
