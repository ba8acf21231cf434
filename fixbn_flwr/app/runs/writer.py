"""The folder of one run: its config, a line of metrics a round, models, a summary and a figure.

    config.json          the resolved settings, versions, hardware, start time
    metrics.jsonl        one `RoundMetrics` a line
    final.safetensors    the model after the last round; best.safetensors: at its best test accuracy
    summary.json         the `Summary`
    curves.png           accuracy and loss by round
    checkpoints/         the newest states to go on from, see `fixbn_flwr.persistence.checkpoints`

A run folder is never overwritten; it is there with its config or not at all, and its models and
JSON files are whole or not there. While a run lasts, its process holds a lock on the folder, which
ends with it however it ends.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.environment import hardware, versions
from fixbn_flwr.app.runs.figure import draw_curves, figure_title
from fixbn_flwr.app.runs.reader import (
    CONFIG,
    METRICS,
    SUMMARY,
    is_finished,
    line_of,
    read_config,
    read_metrics,
)
from fixbn_flwr.app.runs.summary import RoundMetrics, Summary, best_round, summarize
from fixbn_flwr.errors import CheckpointError, ConfigError
from fixbn_flwr.persistence.atomic_files import remove_partial_files, write_atomically

_logger = logging.getLogger("flwr.fixbn")


class RunFolder:
    """A run's folder while the run lasts; made by `create`, or taken again by `reopen`.

    `path` is absolute; `clients` is the number of the run's clients and `run` Flower's number of
    it, as it began; `lines` are those of metrics.jsonl so far.

    Raises `CheckpointError`, in all that writes, when it cannot be written: what was there before
    is as it was.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        method: str,
        clients: int,
        run: int,
        lock: contextlib.ExitStack,
    ) -> None:
        self.path = path
        self.clients = clients
        self.run = run
        self._settings = settings
        self._method = method
        self._metrics: list[RoundMetrics] = []
        self.lines: list[str] = []
        self._lock = lock

    @classmethod
    def create(
        cls,
        settings: Settings,
        *,
        method: str,
        clients: int,
        run: int = 0,
        when: datetime | None = None,
    ) -> "RunFolder":
        """Makes `<output-dir>/<run-name>` and writes config.json into it.

        `method` is the run's label; `clients` is the number of all its clients; `run` is Flower's
        number of it, 0 without Flower; `when` is its start, by default now. A name made from the
        time gets a number behind it when it is taken already.

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
            "run": run,
            "started": when.isoformat(timespec="seconds"),
            "versions": versions(),
            "hardware": hardware(),
        }
        new, made = None, list[Path]()
        try:
            made += [folder for folder in (root, *root.parents) if not folder.exists()]
            root.mkdir(parents=True, exist_ok=True)
            new = root / f".{uuid.uuid4()}.new"  # has a name as soon as its config is in it
            new.mkdir()
            write_atomically(new / CONFIG, _json(config))
            path = _claim(new, settings, method, when)
        except (OSError, ValueError) as error:
            if new:
                shutil.rmtree(new, ignore_errors=True)
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
        lock = contextlib.ExitStack()
        lock.enter_context(locked(path))
        return cls(path, settings, method, clients, run, lock)

    @classmethod
    def reopen(
        cls,
        path: Path,
        settings: Settings,
        clients: int,
        server_round: int,
        *,
        given: Settings,
        metrics: Sequence[str],
        best: Mapping[str, npt.NDArray[Any]] | None,
        lock: contextlib.ExitStack,
    ) -> "RunFolder":
        """Takes a run's folder and puts it back to what it was after a round.

        `given` is the config as the user wrote it, `settings` the same with the T* that the run
        began with; `metrics` are the lines of the rounds until then, `best` the best model of them;
        `lock` holds the folder. config.json tells from now on that the run was resumed, and what of
        its config has changed. The last model of a run that had ended stays, under another name.

        Raises `CheckpointError` when the folder cannot be written.
        """
        config = read_config(path)
        folder = cls(path, settings, config["method"], clients, config["run"], lock)
        now = given.as_run_config()
        before = config["run_config"]
        changed = {key: now[key] for key in now if now[key] != before.get(key)}
        config |= {"run_config": now, "freeze_round": settings.freeze_round, "clients": clients}
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        config.setdefault("resumed", []).append(
            {
                "after_round": server_round,
                "when": when,
                "changed": changed,
                "versions": versions(),
                "hardware": hardware(),
            }
        )
        if other := [k for k, v in versions().items() if config["versions"].get(k, v) != v]:
            _logger.warning(
                "%s was begun with other versions of %s: the last digits may differ from those of "
                "a run that was not stopped. config.json has both.",
                path, ", ".join(other),
            )  # fmt: skip
        with folder._writing():
            remove_partial_files(path)
            final = path / "final.safetensors"
            if is_finished(path) and final.exists():  # a kill may have come after its new name
                last = max((line.round for line in read_metrics(path)), default=server_round)
                final.rename(path / f"final-round-{last}.safetensors")
            for later in (SUMMARY, "final.safetensors", "best.safetensors", "curves.png"):
                (path / later).unlink(missing_ok=True)
            write_atomically(path / METRICS, "".join(metrics).encode())
            write_atomically(path / CONFIG, _json(config))
        folder._metrics, folder.lines = read_metrics(path), list(metrics)
        if best is not None:
            folder.save_model("best", best)
        return folder

    def metrics_of(self, server_round: int) -> RoundMetrics | None:
        """The metrics of a round; None when it has not ended yet."""
        return next((m for m in self._metrics if m.round == server_round), None)

    def append(self, metrics: RoundMetrics) -> bool:
        """Adds a round to metrics.jsonl; True when its test accuracy is the best so far."""
        best = best_round(self._metrics)
        self._metrics.append(metrics)
        self.lines.append(line_of(metrics))
        with self._writing(), (self.path / METRICS).open("ab", buffering=0) as file:
            length = file.tell()
            try:
                line = self.lines[-1].encode()
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
        """Ends the run: writes summary.json and curves.png, and returns the summary."""
        summary = summarize(self._metrics, self._settings)
        with self._writing():
            draw_curves(
                {self._method: self._metrics},
                self._settings.freeze_round,
                self.path / "curves.png",
                title=figure_title(self._settings, self.clients),
            )
            write_atomically(self.path / SUMMARY, _json(dataclasses.asdict(summary)))
        self._lock.close()
        return summary

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written ({error}); what was there before is whole. Make "
                "room on its disk, or mend what is wrong there, and resume the run"
            ) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes from running or deleting a run, until the block or the process ends.

    Where there are no locks, as on some network disks, it does nothing. Raises `CheckpointError`
    when another process has the folder.
    """
    folder = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another process is running the run of {path}: wait until it ends, or end it"
            ) from None
        except OSError as error:
            _logger.warning("%s cannot be locked (%s): run it in one process only", path, error)
        yield
    finally:
        os.close(folder)


def _claim(new: Path, settings: Settings, method: str, when: datetime) -> Path:
    """Gives a run's new folder its name, beside others, and returns it.

    Raises `ConfigError` when the name is taken and is the user's.
    """
    name = settings.run_name
    if not name:
        name = f"{when:%Y%m%d-%H%M%S}-{settings.task_name}-{method.replace(' ', '-')}"
    number = 1
    while True:
        path = new.with_name(name if number == 1 else f"{name}-{number}")
        try:
            return new.rename(path)  # in place of an empty folder, but of nothing else
        except OSError:
            if not path.exists():
                raise
        if settings.run_name:
            raise ConfigError(
                f"run-name = {json.dumps(name)}: {path} is there already, and a run is never "
                "overwritten; choose another run-name, or leave it empty"
            )
        number += 1


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
