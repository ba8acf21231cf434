"""Compare updates of a run's models, from the initial one to the last, layer by layer.

    [measure]
    local-steps = [1, 20]
    draws = 3
    models = 6         # of the run, at equal distances in rounds; the initial one comes on top
    [measure.of]       # what is compared, by the run's method
    BN = ["batch statistics", "frozen statistics", "a client's own update"]

See `MODES` for what the words mean. The learning rate is that of the run in the model's round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fixbn_flwr.app.client.image_client import partitions_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.reader import CHECKPOINTS
from fixbn_flwr.array_records import arrays_of
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.persistence.safetensors_tree import from_bytes
from fixbn_flwr.tasks import get_task, load_splits
from simulation.experiments.gradients import (
    LayerDifference,
    batch_against_global_statistics,
    federated_against_centralised,
)
from simulation.experiments.planned_run import Run
from simulation.experiments.updates import Trial

SEED = 2000  # runs have other seeds
OF_BATCH, FROZEN, OWN = "batch statistics", "frozen statistics", "a client's own update"
MODES: Mapping[str, Callable[[Trial], list[LayerDifference]]] = {
    # The federated against the centralised update, both normalised in this way.
    OF_BATCH: partial(federated_against_centralised, frozen=False),
    FROZEN: partial(federated_against_centralised, frozen=True),
    # A client's update with its batch statistics against that with the global ones.
    OWN: batch_against_global_statistics,
}


def is_measured(run: Run, what: Mapping[str, Any] | None) -> bool:
    """Return whether the experiment's table `measure`, if it has one, names this run's method."""
    return what is not None and run.kind == "result" and run.method in what["of"]


def kept_models(run: Run, what: Mapping[str, Any]) -> dict[str, int]:
    """Return the run-config keys that keep the models of a measured run."""
    every = max(1, run.rounds // what["models"])
    return {"checkpoint-every": every, "keep-checkpoints": run.rounds // every + 1}


def measure_run(
    run: Run, config: Mapping[str, Any], folder: Path, what: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Measure the models of a run.

    Args:
        run: The run.
        config: Its run config.
        folder: Its run folder.
        what: The experiment's table `measure`.

    Returns:
        {"gradients": rows for `reporting.gradient_figure`, "not measured": the reason for each
        model that diverged}.
    """
    settings = Settings.from_run_config(config)
    task = get_task(settings.task)
    data, _ = load_splits(task, settings.data_path)
    parts = partitions_of(settings, data, run.clients)
    found: dict[str, list[Any]] = {"gradients": [], "not measured": []}
    for server_round, model in _models(settings, folder):
        for steps in what["local-steps"]:
            trial = Trial(
                task,
                data,
                parts,
                model.double(),
                local_steps=steps,
                batch_size=settings.batch_size,
                learning_rate=_rate(settings, max(1, server_round)),
                draws=what["draws"],
                seed=SEED + run.seed,
            )
            for mode in what["of"][run.method]:
                # The initial statistics, mean 0 and variance 1, do not normalize.
                if server_round == 0 and mode != OF_BATCH:
                    continue
                row = {
                    "method": run.method, "round": server_round, "share": server_round / run.rounds,
                    "mode": mode, "local_steps": steps,
                }  # fmt: skip
                try:
                    layers = MODES[mode](trial)
                except ConfigError as error:
                    found["not measured"].append({**row, "why": str(error)})
                else:
                    found["gradients"] += [{**row, **asdict(layer)} for layer in layers]
    return found


def _models(settings: Settings, folder: Path) -> Iterator[tuple[int, nn.Module]]:
    """Yield the initial model with round 0, then those of the checkpoints."""
    torch.manual_seed(settings.seed)
    model = get_task(settings.task).models[settings.model](settings.norm)
    yield 0, model
    for path in sorted((folder / CHECKPOINTS).glob("round-*.safetensors")):
        server_round = int(path.name.split("-")[1])
        arrays = arrays_of(from_bytes(path.read_bytes())["model"])
        model.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
        yield server_round, model


def _rate(settings: Settings, server_round: int) -> float:
    """Return the run's learning rate in a round."""
    frozen = server_round > settings.freeze_round
    factor = float(settings.learning_rate_factor) if frozen else 1.0
    return settings.learning_rate_at(server_round) * factor
