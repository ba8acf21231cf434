"""Small results made by hand, for the tests of tables and figures."""

from __future__ import annotations

import math
from typing import Any

from simulation.experiments.result_log import Result


def result(
    method: str,
    setting: dict[str, str],
    accuracy: float | None,
    *,
    seed: int = 0,
    diverged: bool = False,
    **fields: Any,
) -> Result:
    """A run of four rounds; a diverged one has no finite loss from round 3 on."""
    lost = math.nan if diverged else 1.0
    return Result(
        **{
            "id": "0",
            "kind": "result",
            "grid": "main",
            "method": method,
            "setting": setting,
            "seed": seed,
            "clients": 10,
            "learning_rate": 0.05,
            "accuracy": accuracy,
            "accuracies": {1: 0.25, 2: 0.5, 3: accuracy or 0.1, 4: accuracy or 0.1},
            "losses": {1: 1.0, 2: 1.0, 3: lost, 4: lost},
            "failure": None,
            "dropped": 0,
            "seconds": 10.0,
            "bytes_sent": 1_080_000.0,
            "bytes_received": 1_080_000.0,
            "client_state_bytes": 0.0,
            "run_config": {"num-server-rounds": 4, "freeze-after": 1.0},
            "started": "2026-11-22T14:00:00+00:00",
            "hardware": {"cpu": "Xeon", "cores": 2, "gpu": None},
            "versions": {"flwr": "1.41.0", "torch": "2.11.0"},
            "command": "python -m simulation.experiments run main",
            **fields,
        }
    )
