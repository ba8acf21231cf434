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
import importlib.metadata
import io
import itertools
import json
import math
import os
import platform
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from fixbn_flwr.app.config import Settings
from fixbn_flwr.app.figure import draw_curves, figure_title
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.schedule import Phase

_METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class RoundMetrics:
    """What one round gave; a line of metrics.jsonl.

    Losses are mean cross-entropies in nats, accuracies are shares in [0, 1]; a test value is None
    in a round without evaluation. Traffic is the server's, in bytes; time in seconds.
    `clients` counts the replies that were averaged, `dropped` those that were not.
    """

    round: int
    phase: Phase
    learning_rate: float
    train_loss: float | None
    test_loss: float | None
    test_accuracy: float | None
    bytes_sent: int
    bytes_received: int
    seconds: float
    clients: int
    dropped: int


@dataclass(frozen=True)
class Summary:
    """A run in a line: shares in [0, 1], megabytes of 10^6 bytes; None: was never evaluated.

    `accuracy_at_freeze` is that of round T*, None also when nothing was frozen; `best_round` is
    the first round that reached `best_accuracy`.
    """

    accuracy_at_freeze: float | None
    final_accuracy: float | None
    best_accuracy: float | None
    best_round: int | None
    seconds: float
    megabytes_sent: float
    megabytes_received: float


class RunFolder:
    """A run's folder while the run lasts; made by `create`.

    `path` is absolute.
    """

    def __init__(self, path: Path, settings: Settings, clients: int) -> None:
        self.path = path
        self._settings = settings
        self._clients = clients
        self._metrics: list[RoundMetrics] = []

    @classmethod
    def create(
        cls, settings: Settings, *, clients: int, when: datetime | None = None
    ) -> "RunFolder":
        """Makes `<output-dir>/<run-name>` and writes config.json into it.

        `clients` is the number of all clients of the run; `when` is its start, by default now. A
        name made from the time gets a number behind it when it is taken already.

        Raises `ConfigError` when a run of the given name exists, or when the folder cannot be
        made or written (no permission, not a directory, full disk); nothing is left behind then.
        """
        when = when or datetime.now().astimezone()
        root = Path(os.path.abspath(os.path.expanduser(settings.output_dir or "~/fixbn-runs")))
        config = {
            "run_config": settings.as_run_config(),
            "method": settings.method,
            "freeze_round": settings.freeze_round,
            "clients": clients,
            "started": when.isoformat(timespec="seconds"),
            "versions": _versions(),
            "hardware": _hardware(),
        }
        path, made = None, list[Path]()
        try:
            made += [folder for folder in (root, *root.parents) if not folder.exists()]
            root.mkdir(parents=True, exist_ok=True)
            path = _claim(root, settings, when)
            _write(path / "config.json", _json(config))
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
        return cls(path, settings, clients)

    def append(self, metrics: RoundMetrics) -> bool:
        """Adds a round to metrics.jsonl; True when its test accuracy is the best so far."""
        best = _best(self._metrics)
        self._metrics.append(metrics)
        with (self.path / _METRICS).open("a", encoding="utf-8") as file:
            file.write(_line(metrics))
        return _best(self._metrics) is not best

    def save_model(
        self, name: Literal["final", "best"], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> Path:
        """Writes arrays, by name, to `<name>.safetensors`; the same arrays give the same bytes."""
        # safetensors writes an array's memory as it lies, so it must lie in C order; and asarray
        # keeps a 0-d counter 0-d, which ascontiguousarray would not.
        ordered = {key: np.asarray(arrays[key], order="C") for key in sorted(arrays)}
        path = self.path / f"{name}.safetensors"
        _write(path, safetensors.numpy.save(ordered))
        return path

    def finish(self) -> Summary:
        """Writes summary.json and curves.png from the rounds appended, and returns the summary."""
        summary = summarize(self._metrics, self._settings)
        _write(self.path / "summary.json", _json(dataclasses.asdict(summary)))
        draw_curves(
            {self._settings.method: self._metrics},
            self._settings.freeze_round,
            self.path / "curves.png",
            title=figure_title(self._settings, self._clients),
        )
        return summary


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


def summarize(metrics: Sequence[RoundMetrics], settings: Settings) -> Summary:
    """The summary of a run's rounds so far."""
    freezes = settings.freeze_round < settings.num_server_rounds
    at_freeze = [m for m in metrics if freezes and m.round == settings.freeze_round]
    best = _best(metrics)
    return Summary(
        accuracy_at_freeze=at_freeze[0].test_accuracy if at_freeze else None,
        final_accuracy=metrics[-1].test_accuracy if metrics else None,
        best_accuracy=best.test_accuracy if best else None,
        best_round=best.round if best else None,
        seconds=sum(m.seconds for m in metrics),
        megabytes_sent=sum(m.bytes_sent for m in metrics) / 1e6,
        megabytes_received=sum(m.bytes_received for m in metrics) / 1e6,
    )


def summary_table(summaries: Mapping[str, Summary]) -> str:
    """One row a run, by label: accuracies in %, time, traffic; ASCII, at most 80 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.ASCII)
    table.add_column("run", overflow="fold")
    headings = (
        "at T*\n%",
        "final\n%",
        "best\n%",
        "in\nround",
        "time\ns",
        "sent\nMB",
        "received\nMB",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for label, summary in summaries.items():
        shares = (summary.accuracy_at_freeze, summary.final_accuracy, summary.best_accuracy)
        table.add_row(
            label,
            *("-" if share is None else f"{100 * share:.1f}" for share in shares),
            "-" if summary.best_round is None else str(summary.best_round),
            f"{summary.seconds:.1f}",
            f"{summary.megabytes_sent:.1f}",
            f"{summary.megabytes_received:.1f}",
        )
    text = io.StringIO()
    Console(file=text, width=80, color_system=None, markup=False, emoji=False).print(table)
    return text.getvalue().rstrip("\n")


def _best(metrics: Sequence[RoundMetrics]) -> RoundMetrics | None:
    """The first of the rounds with the highest test accuracy."""
    tested = [m for m in metrics if m.test_accuracy is not None]
    return max(tested, key=lambda m: m.test_accuracy or 0.0, default=None)


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


def _claim(root: Path, settings: Settings, when: datetime) -> Path:
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
    method = settings.method.replace(" ", "-")
    name = f"{when:%Y%m%d-%H%M%S}-{settings.task}-{method}"
    for number in itertools.count(1):
        path = root / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


def _write(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, also when the machine stops in the middle."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _json(content: Mapping[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _versions() -> dict[str, str]:
    return {
        "fixbn_flwr": _own_version(),
        "flwr": importlib.metadata.version("flwr"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _own_version() -> str:
    # `flwr run` runs a copy that is not installed, but it has its pyproject.toml beside it.
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return importlib.metadata.version("fixbn-flwr")


def _hardware() -> dict[str, str | int | None]:
    """This machine's processor, its cores, and its GPU or None."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # only Linux has it, and names the model there
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": os.cpu_count(), "gpu": gpu}
