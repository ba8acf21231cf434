"""The whole app in this process: its server app and its client app on the in-memory grid."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from flwr.app import Context, RecordDict

from fixbn_flwr.app import client_app, server_app
from fixbn_flwr.testing import SerializingGrid

# Two rounds with the statistics of each client, one with the frozen ones; learns something.
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
    """Run the app with SMALL and what differs from it; return its run folder."""
    config = {**SMALL, "output-dir": str(output_dir), **run_config}
    grid = SerializingGrid(client_app.app, clients, run_config=config, **grid_options)
    serve(grid, config)
    (folder,) = output_dir.iterdir()
    return folder


def serve(grid: SerializingGrid, config: Mapping[str, Any]) -> None:
    """Run the server app on a grid."""
    context = Context(
        run_id=grid.run.run_id,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config=dict(config),
    )
    # The figure takes longer than all the rest, and has tests of its own.
    with patch("fixbn_flwr.app.runs.writer.draw_curves"):
        server_app.app(grid, context)


def weight_of(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """The bytes of arrays as Flower sends them: each a .npy file, and its name."""
    total = 0
    for name, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array)
        total += len(file.getvalue()) + len(name)
    return total


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, as any reader of JSON sees them."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
