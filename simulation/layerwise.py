"""What `gradients` measures of a run when it has ended: its models, layer by layer.

    [measure]
    local-steps = [1, 20]
    draws = 5
    [measure.of]       # a method's last model: what to call it, and how to normalise
    BN = { model = "at the end", modes = ["BN, statistics of the batch"] }

A mode that begins with "BN, frozen" normalises with the model's own statistics. A method with
`initial = true` has the initial model of the run measured as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from fixbn_flwr.app.config import Settings
from fixbn_flwr.tasks import Split, Task, get_task, load_splits
from fixbn_flwr.tasks.partition import partition
from simulation.gradients import measure
from simulation.plan import Run

FROZEN = "BN, frozen"
SEED = 2000  # no run draws its batches from it


def measure_run(
    run: Run, config: Mapping[str, Any], folder: Path, what: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Measure the last model of a run, and the initial one where that is asked for.

    Args:
        run: the run.
        config: its whole run config.
        folder: its run folder.
        what: the experiment's table `measure`.

    Returns:
        {"gradients": rows for `simulation.curves.draw_gradients`}; nothing for a method that the
        table does not name.
    """
    of = what["of"].get(run.method)
    if of is None or run.kind == "search":
        return {}
    settings = Settings.from_run_config(config)
    task = get_task(settings.task)
    data, _ = load_splits(task, settings.data_path)
    torch.manual_seed(settings.seed)
    model = task.models[settings.model](settings.norm)
    rows = []
    if of.get("initial"):
        rows += _rows(run, settings, task, data, model, "initial", of["modes"], what)
    model.load_state_dict(safetensors.torch.load_file(folder / "final.safetensors"))
    rows += _rows(run, settings, task, data, model, of["model"], of["modes"], what)
    return {"gradients": rows}


def _rows(
    run: Run,
    settings: Settings,
    task: Task,
    data: Split,
    model: nn.Module,
    name: str,
    modes: list[str],
    what: Mapping[str, Any],
) -> list[dict[str, Any]]:
    parts = partition(
        data.labels,
        run.clients,
        settings.partition,
        alpha=settings.partition_alpha,
        classes_per_client=settings.partition_classes,
        seed=settings.seed,
        groups=None if data.groups is None else data.groups.numpy(),
    )
    rows = []
    for mode in modes:
        for steps in what["local-steps"]:
            layers = measure(
                task,
                data,
                parts,
                model.double(),
                frozen=mode.startswith(FROZEN),
                local_steps=steps,
                batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                draws=what["draws"],
                seed=SEED + run.seed,
            )
            rows += [
                {"model": name, "mode": mode, "local_steps": steps, **asdict(layer)}
                for layer in layers
            ]
    return rows
