"""Runs the server app and the client app in this process, on the in-memory grid."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from fixbn_flwr.app import client_app, server_app
from fixbn_flwr.engine.simulation import run_server
from fixbn_flwr.testing import SerializingGrid

# Two rounds of exploration and one of calibration; the model learns something.
SMALL: dict[str, Any] = {
    "task": "digits",
    "num-server-rounds": 3,
    "freeze-after": 2,
    "partition": "classes",
    "partition-classes": 2,
    "fraction-train": 0.5,
    "local-steps": 2,
    "local-epochs": 0,
    "batch-size": 8,
    "learning-rate": 0.05,
    "device": "cpu",
}


def run_app(
    output_dir: Path, clients: int, run_config: Mapping[str, Any], **grid_options: Any
) -> Path:
    """Run the app with SMALL, updated by a run config; return its run folder."""
    config = {**SMALL, "output-dir": str(output_dir), **run_config}
    grid = SerializingGrid(client_app.app, clients, run_config=config, **grid_options)
    serve(grid, config)
    (folder,) = output_dir.iterdir()
    return folder


def serve(grid: SerializingGrid, config: Mapping[str, Any]) -> None:
    """Run the server app on a grid."""
    # Drawing the figure takes longest, and has its own tests.
    with patch("fixbn_flwr.app.runs.writer.draw_curves"):
        run_server(server_app.app, grid, config)


def size_of(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return how many bytes Flower sends for arrays: a .npy file and a name for each."""
    total = 0
    for name, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array)
        total += len(file.getvalue()) + len(name)
    return total


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """Return the parsed lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
