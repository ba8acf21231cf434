"""Runs of the app on digits that stop and resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixbn_flwr.app import client_app
from fixbn_flwr.errors import RoundsFailedError
from fixbn_flwr.testing import SerializingGrid
from tests.support.whole_app import SMALL, rounds_of, serve

CLIENTS, ROUNDS, FROZEN_AFTER = 4, 8, 4
SAME = ("round", "phase", "train_loss", "test_loss", "test_accuracy", "bytes_sent", "clients",
        "validation_loss", "validation_accuracy", "validation_by_client")  # fmt: skip


def config_of(root: Path, **more: Any) -> dict[str, Any]:
    return {
        **SMALL,
        "num-server-rounds": ROUNDS,
        "freeze-after": FROZEN_AFTER,
        "run-name": "run",
        "output-dir": str(root),
        "state-dir": str(root / "state"),
        "validation-share": 0.1,
        **{key.replace("_", "-"): value for key, value in more.items()},
    }


def run(config: dict[str, Any], run_id: int = 1, clients: int = CLIENTS, **grid: Any) -> Path:
    """Run the app as a new Flower run, or with `resume` as a resumed one."""
    serve(
        SerializingGrid(client_app.app, clients, run_config=config, run_id=run_id, **grid), config
    )
    return Path(config.get("resume") or f"{config['output-dir']}/{config['run-name']}")


def assert_same(one: Path, other: Path) -> None:
    for model in ("final.safetensors", "best.safetensors"):
        assert (one / model).read_bytes() == (other / model).read_bytes()
    first, second = ([[line[key] for key in SAME] for line in rounds_of(p)] for p in (one, other))
    assert first == second
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one, other)]
    assert summaries[0].keys() == summaries[1].keys()
    for key in ("accuracy_at_freeze", "final_accuracy", "best_validation", "best_round"):
        assert summaries[0][key] == summaries[1][key]


def run_until_failure(config: dict[str, Any], after: int, run_id: int = 1) -> Path:
    """Run the app until it raises, because all clients fail after a round."""

    def fails(message: Any) -> bool:
        return int(message.content.config_records["config"]["server-round"]) > after

    def lost(message: Any) -> bool:
        return "config" in message.content.config_records and fails(message)

    with pytest.raises(RoundsFailedError):
        run(config, run_id, lost=lost)
    return Path(config.get("resume") or f"{config['output-dir']}/run")


def lost_in(rounds: set[int]) -> Callable[[Any], bool]:
    """Return a function that returns whether a message belongs to one of these rounds."""

    def lost(message: Any) -> bool:
        config = message.content.config_records.get("config", {})
        return config.get("server-round") in rounds

    return lost
