"""What `gradients` measures of a run when it has ended: its models, layer by layer.

    [measure]
    local-steps = [1, 20]
    draws = 5
    [measure.of]       # a method's last model: what to call it, and how to normalise in turn
    BN = { model = "at the end", modes = ["BN, statistics of the batch"] }

With `initial = true` the initial model of the method is measured as well. Steps are as long as
those of the run at that model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from fixbn_flwr.app.client.numpy_client import partitions_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits
from simulation.experiments.experiment import Run
from simulation.experiments.gradients import measure

FROZEN = "BN, frozen statistics"  # the mode that normalises with the model's own statistics
INITIAL = "initial"
SEED = 2000  # no run draws its batches from it


def measure_run(
    run: Run, config: Mapping[str, Any], folder: Path, what: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Measure the last model of a run, and the initial one where that is asked for.

    Args:
        run: the run.
        config: its whole run config.
        folder: its run folder.
        what: the experiment's table `measure`.

    Returns:
        {"gradients": rows for `reporting.line_figures.draw_gradients`, "not measured": the reason
        for each model that diverged}. Empty for a method that the table does not name.
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
                    learning_rate=settings.effective_learning_rate(at_round),
                    draws=what["draws"],
                    seed=SEED + run.seed,
                )
            except ConfigError as error:
                found["not measured"].append({**row, "why": str(error)})
            else:
                found["gradients"] += [{**row, **asdict(layer)} for layer in layers]
