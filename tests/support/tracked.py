"""Real runs of the app with trackers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fixbn_flwr.app import client_app, server_app
from fixbn_flwr.engine.simulation import run_server
from fixbn_flwr.testing import SerializingGrid
from tests.support.whole_app import SMALL, rounds_of


def tracked_run(folder: Path, track: str, **changes: Any) -> Path:
    """Run the app on digits with three clients; return its run folder."""
    changed = {key.replace("_", "-"): value for key, value in changes.items()}
    config = {
        **SMALL, "output-dir": str(folder), "run-name": "mine", "fraction-train": 1.0,
        "track": track, **changed,
    }  # fmt: skip
    grid = SerializingGrid(client_app.app, 3, run_config=config)
    run_server(server_app.app, grid, config)  # with its figure
    return folder / "mine"


def logged_values(folder: Path) -> list[dict[str, float]]:
    """Return what trackers should have of each round, by metrics.jsonl."""
    values = []
    for line in rounds_of(folder):
        flat = {"calibration": float(line["phase"] == "calibration")}
        for name, value in line.items():
            key = name.replace("_", "-")
            if isinstance(value, dict):
                flat |= {f"{key}/{part}": number for part, number in value.items()}
            elif isinstance(value, int | float) and name != "round":
                flat[key] = float(value)
        values.append(flat)
    return values
