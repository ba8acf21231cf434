"""The tables of a report: what the runs achieved, and how their configs differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.report.reported_run import ReportedRun

# They say where a run is, not what it is.
_PLACES = {"output-dir", "run-name", "track", "resume", "may-change"}
_NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        heading: Its first cell.
        cells: The other cells.
        marked: Whether it stands out.
    """

    heading: str
    cells: Sequence[str]
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: The headings of the columns; the first is that of the rows' headings.
        rows: The rows.
    """

    columns: Sequence[str]
    rows: list[Row] = field(default_factory=list)


def overview(runs: Sequence[ReportedRun]) -> Table:
    """Return what each run is and achieved, one column per run."""
    lines: dict[str, Callable[[ReportedRun], str]] = {
        "method": lambda run: str(run.config.get("method", _NOTHING)),
        "setting": lambda run: run.setting,
        "started": lambda run: str(run.config.get("started", _NOTHING)).replace("T", " "),
        "rounds": _rounds,
        "T*": _freeze,
        "test score at T*": lambda run: _share(run, run.summary.accuracy_at_freeze),
        "final test score": lambda run: _share(run, run.summary.final_accuracy),
        "best model": _best,
        "clients per round": lambda run: _range([m.clients for m in run.rounds]),
        "dropped clients": lambda run: str(sum(m.dropped for m in run.rounds)),
        "retries after T*": lambda run: str(max((m.retries for m in run.rounds), default=0)),
        "sent to clients": lambda run: f"{run.summary.megabytes_sent:,.1f} MB",
        "received from clients": lambda run: f"{run.summary.megabytes_received:,.1f} MB",
        "duration of the rounds": lambda run: _duration(run.summary.seconds),
        "resumed": _resumed,
    }
    rows = [Row(name, [cell(run) for run in runs]) for name, cell in lines.items()]
    return Table(["", *(run.label for run in runs)], rows)


def config_differences(runs: Sequence[ReportedRun]) -> Table:
    """Return the keys of the run config that differ from the default or between runs.

    A row is marked if the runs differ. So is one about versions or hardware.
    """
    defaults = Settings().as_run_config()
    configs = [run.config["run_config"] for run in runs]
    keys = [*defaults, *dict.fromkeys(key for config in configs for key in config)]
    table = Table(["key", "default", *(run.label for run in runs)])
    for key in dict.fromkeys(keys):
        values = [_written(config.get(key)) for config in configs]
        default = _written(defaults.get(key))
        differ = len(set(values)) > 1
        if key not in _PLACES and (differ or values[0] not in (default, _NOTHING)):
            table.rows.append(Row(key, [default, *values], differ))
    for group in ("versions", "hardware"):
        entries = [run.config.get(group, {}) for run in runs]
        for name in dict.fromkeys(name for entry in entries for name in entry):
            values = [_written(entry.get(name)) for entry in entries]
            table.rows.append(Row(name, [_NOTHING, *values], len(set(values)) > 1))
    return table


def _rounds(run: ReportedRun) -> str:
    planned = run.config["run_config"].get("num-server-rounds", "?")
    state = "" if run.is_finished else ", not finished"
    return f"{len(run.rounds)} of {planned}{state}"


def _freeze(run: ReportedRun) -> str:
    reason = run.config.get("freeze_reason")
    frozen = "nothing is frozen" if run.freeze_round is None else f"round {run.freeze_round}"
    return f"{frozen} ({reason})" if reason else frozen


def _share(run: ReportedRun, share: float | None) -> str:
    return _NOTHING if share is None else f"{share:.1%} {run.score}"


def _best(run: ReportedRun) -> str:
    summary = run.summary
    if summary.best_round is None:
        return _NOTHING
    tested = "" if summary.best_accuracy is None else f", {summary.best_accuracy:.1%} in the test"
    return f"{summary.best_validation:.1%} at the clients{tested}, round {summary.best_round}"


def _range(values: Sequence[int]) -> str:
    if not values:
        return _NOTHING
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _resumed(run: ReportedRun) -> str:
    resumptions = run.config.get("resumed", [])
    return ", ".join(f"after round {entry['after_round']}" for entry in resumptions) or "never"


def _written(value: Any) -> str:
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'
