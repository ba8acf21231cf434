"""Compare federated and centralized updates of the models of a completed run, layer by layer.

    [measure]
    local-steps = [1, 20]
    draws = 5
    [measure.of]       # a method's last model: its name in the report, and its modes
    BN = { model = "at the end", modes = ["BN, statistics of the batch"] }

With `initial = true` the initial model is measured, too. The learning rate is that of the run at
the model's round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from fixbn_flwr.app.client.image_client import partitions_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits
from simulation.experiments.gradients import measure
from simulation.experiments.planned_run import Run

FROZEN = "BN, frozen statistics"  # the mode with the model's own statistics
INITIAL = "initial"
SEED = 2000  # runs have other seeds


def measure_run(
    run: Run, config: Mapping[str, Any], folder: Path, what: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Measure the last model of a run and, if `initial` is set, the initial one.

    Args:
        run: The run.
        config: Its run config.
        folder: Its run folder.
        what: The experiment's table `measure`.

    Returns:
        {"gradients": rows for `reporting.line_figures.draw_gradients`, "not measured": the reason
        for each model that diverged}. Empty if the table does not name the method.
    """
    of = what["of"].get(run.method)
    if of is None or run.kind == "search":
        return {}
    settings = Settings.from_run_config(config)
    torch.manual_seed(settings.seed)
    model = get_task(settings.task).models[settings.model](settings.norm)
    found: dict[str, list[Any]] = {"gradients": [], "not measured": []}
    if of.get("initial"):
        modes = [mode for mode in of["modes"] if mode != FROZEN]
        _measure(run, settings, model, INITIAL, modes, what, found)
    model.load_state_dict(safetensors.torch.load_file(folder / "final.safetensors"))
    _measure(run, settings, model, of["model"], of["modes"], what, found)
    return found


def _measure(
    run: Run,
    settings: Settings,
    model: nn.Module,
    name: str,
    modes: list[str],
    what: Mapping[str, Any],
    found: dict[str, list[Any]],
) -> None:
    task = get_task(settings.task)
    data, _ = load_splits(task, settings.data_path)
    parts = partitions_of(settings, data, run.clients)
    at_round = 1 if name == INITIAL else settings.num_server_rounds
    for mode in modes:
        for steps in what["local-steps"]:
            row = {"model": name, "mode": mode, "local_steps": steps}
            try:
                layers = measure(
                    task,
                    data,
                    parts,
                    model.double(),
                    frozen=mode == FROZEN,
                    local_steps=steps,
                    batch_size=settings.batch_size,
                    learning_rate=settings.learning_rate_at(at_round) * _factor(settings, at_round),
                    draws=what["draws"],
                    seed=SEED + run.seed,
                )
            except ConfigError as error:
                found["not measured"].append({**row, "why": str(error)})
            else:
                found["gradients"] += [{**row, **asdict(layer)} for layer in layers]


def _factor(settings: Settings, server_round: int) -> float:
    return float(settings.learning_rate_factor) if server_round > settings.freeze_round else 1.0
