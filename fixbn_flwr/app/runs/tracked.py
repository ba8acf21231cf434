"""Log a run of the app to its trackers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.reader import read_config
from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.app.runs.writer import RunFolder
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.tracking import Tracking


def tracking_of(settings: Settings, folder: RunFolder, rounds_done: int = 0) -> Tracking:
    """Return what logs a run to the trackers of its run config."""
    config = read_config(folder.path)
    facts = {key: config[key] for key in ("method", "clients", "started")}
    return Tracking(
        settings.track,
        folder.path,
        {**settings.as_run_config(), **facts, **config["versions"]},
        first_round=rounds_done + 1,
    )


def log_round(tracking: Tracking, metrics: RoundMetrics) -> None:
    """Log a round, by the names of metrics.jsonl with `-` for `_`."""
    values: dict[str, float] = {"calibration": int(metrics.phase is Phase.CALIBRATION)}
    for name, value in dataclasses.asdict(metrics).items():
        key = name.replace("_", "-")
        if isinstance(value, Mapping):
            values |= {f"{key}/{part}": number for part, number in value.items()}
        elif name != "round":
            values[key] = value
    tracking.log(metrics.round, values)


def log_result(tracking: Tracking, folder: RunFolder) -> None:
    """Log the figure and the final model of a run that is finished."""
    tracking.log_figure(folder.path / "curves.png")
    tracking.log_model(folder.path / "final.safetensors")
