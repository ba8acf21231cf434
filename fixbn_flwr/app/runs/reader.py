"""Read the files of a run folder: its config and its rounds' metrics.

:mod:`fixbn_flwr.app.runs.writer` writes them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.schedule import Phase

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
CHECKPOINTS = "checkpoints"


def is_finished(path: Path) -> bool:
    """Return whether the run of this folder is complete."""
    return (path / SUMMARY).is_file()


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        ConfigError: If this is not the folder of a run.
    """
    try:
        config: dict[str, Any] = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config["run_config"], dict):
            raise TypeError("run_config is not a table")
        config["clients"] = int(config["clients"])
        config["run"] = int(config.get("run", 0))  # runs of older versions did not record it
        config["freeze_round"] = (
            None if config["freeze_round"] is None else int(config["freeze_round"])
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{path} is not the folder of a run: cannot read {CONFIG} ({error}); name a folder "
            "that a run printed as its run folder"
        ) from error
    return config


def read_metrics(folder: Path) -> list[RoundMetrics]:
    """Return the metrics of a run folder's rounds.

    Raises:
        ConfigError: If there is no metrics.jsonl, or a line of it is damaged.
    """
    path = folder / METRICS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{folder} is not the folder of a run: cannot read {path.name} ({error}); name a run "
            "that has completed a round"
        ) from error
    rounds = []
    for number, line in enumerate(lines, start=1):
        try:
            rounds.append(from_line(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path}, line {number}: not a round's metrics ({error}); restore the file"
            ) from error
    return rounds


def line_of(metrics: RoundMetrics) -> str:
    """Return a round's line of metrics.jsonl."""
    return json.dumps(without_nan(dataclasses.asdict(metrics)), allow_nan=False) + "\n"


def from_line(line: str) -> RoundMetrics:
    """Return the metrics in a line of metrics.jsonl."""
    fields = json.loads(line)
    phase = Phase(fields.pop("phase"))
    return RoundMetrics(phase=phase, **_with_nan(fields))


def without_nan(value: Any) -> Any:
    """Return a value with NaN and infinity as text, because JSON has neither; float() reads it.

    Example:
        >>> without_nan({"loss": float("nan"), "signals": {"drift": 0.5}})
        {'loss': 'nan', 'signals': {'drift': 0.5}}
    """
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(part) for key, part in value.items()}
    return float(value) if isinstance(value, str) else value
