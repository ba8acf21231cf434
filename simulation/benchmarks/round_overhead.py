"""Seconds a round outside training, between real processes on this machine, before and after.

"Before" is the same app with its two lines for real machines taken out, one on each side, Flower's
own polling, and momentum in Flower's context, which travels with every message on the node. The
model is ResNet-18 (122 arrays, 45 MB), and each client takes one step on images made up here, so
that a round is messages and little else. What is left is compared with a bare exchange of as many
bytes (``simulation.benchmarks.bare_exchange``).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.runs.reader import read_metrics
from fixbn_flwr.errors import FixBNError
from fixbn_flwr.models.resnet18 import resnet18
from fixbn_flwr.tasks import Split, Task
from fixbn_flwr.tasks.task import accuracy
from simulation.benchmarks.real_federation import real_federation

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES = 200

# What deploy/start-supernode sets: how often a node's SuperExec looks for a message.
QUICK = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}

# What an app adds for real machines: the file, the line with it, and the line as it was before.
ADDED = (
    (
        "fixbn_flwr/app/client_app.py",
        "mods=[worker_mod, flat_arrays_mod, numpy_client_mod]",
        "mods=[numpy_client_mod]",
    ),
    (
        "fixbn_flwr/app/server/prepared_run.py",
        "reached = flat_in_deployment(grid)",
        "reached = grid",
    ),
)


def _load(_: Path | None) -> tuple[Split, Split]:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 64, 64), dtype=torch.uint8, generator=random)
    split = Split(images=images, targets=torch.arange(64))
    return split, split


TASK = Task(
    name="made-up",
    classes=CLASSES,
    load=_load,
    models={"resnet18": resnet18},
    mean=(127.5,) * 3,
    std=(73.9,) * 3,
    augment=None,
    loss=cross_entropy,
    metric=partial(accuracy, CLASSES),
)


# The project file of the bare exchange's app: what Flower asks for, no more.
BARE_APP = """\
[project]
name = "bare-exchange"
version = "0.1.0"
description = "One array there and back"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fixbn"

[tool.flwr.app.components]
serverapp = "bare_exchange:server"
clientapp = "bare_exchange:client"

[tool.flwr.app.config]
nodes = 0
length = 0
rounds = 0
output = ""
"""


@dataclass
class Rounds:
    """The rounds of one run.

    Attributes:
        seconds: of each round.
        train_seconds: the slowest client's local training in each.
        outside: the difference, without round 1, in which everything starts.
        load: of the machine (1 minute) when the run ended.
    """

    seconds: list[float]
    train_seconds: list[float]
    outside: list[float]
    load: float


def measure(folder: Path, *, rounds: int, nodes: int, before: bool) -> Rounds:
    """Run the app in a federation of real processes.

    Args:
        folder: a new one, for the app's copy and the run's folder.
        rounds: that count, after round 1.
        nodes: SuperNodes, of which all train in each round.
        before: without the two lines.

    Raises:
        FixBNError: the run failed; the message is its log and those of the nodes.
    """
    app = copy_of_app(folder / "app", before=before)
    run_config: dict[str, Value] = {
        "task": "simulation.benchmarks.round_overhead:TASK",
        "partition": "iid",
        "local-steps": 1,
        "batch-size": 8,
        "num-server-rounds": rounds + 1,
        "evaluate-every": rounds + 1,
        "device": "cpu",
        "output-dir": str(folder),
        "run-name": "run",
        # As deploy/start-supernode has it.
        "state-dir": "" if before else str(folder / "state"),
    }
    _run(app, run_config, nodes, {} if before else QUICK)
    metrics = read_metrics(folder / "run")
    seconds = [line.seconds for line in metrics]
    trained = [line.train_seconds or 0.0 for line in metrics]
    return _rounds(seconds, trained)


def measure_bare_exchange(folder: Path, *, rounds: int, nodes: int) -> Rounds:
    """Send as many bytes as the model has there and back, as :func:`measure` its model.

    Raises:
        FixBNError: as :func:`measure`.
    """
    app, output = folder / "app", folder / "seconds.json"
    app.mkdir(parents=True)
    (app / "pyproject.toml").write_text(BARE_APP)
    shutil.copy(REPOSITORY / "simulation" / "benchmarks" / "bare_exchange.py", app)
    state = TASK.models["resnet18"]("bn").state_dict().values()
    run_config: dict[str, Value] = {
        "nodes": nodes,
        "length": sum(tensor.numel() for tensor in state),
        "rounds": rounds + 1,
        "output": str(output),
    }
    _run(app, run_config, nodes, QUICK)
    seconds = json.loads(output.read_text())
    return _rounds(seconds, [0.0] * len(seconds))


def _run(
    app: Path, run_config: Mapping[str, Value], nodes: int, of_nodes: Mapping[str, str]
) -> None:
    environment = {"PYTHONPATH": str(REPOSITORY)}
    log: list[str] = []
    with real_federation(
        nodes=nodes, secure=True, environment=environment, of_nodes=of_nodes
    ) as link:
        failure = link.run(app, run_config, {}, log.append)
        if failure is not None:
            log += [link.node_log(number) for number in range(nodes)]
            raise FixBNError("\n".join([*log, f"the run did not complete ({failure})."]))


def _rounds(seconds: list[float], trained: list[float]) -> Rounds:
    outside = [all_ - own for all_, own in zip(seconds, trained, strict=True)][1:]
    return Rounds(seconds, trained, outside, os.getloadavg()[0])


def copy_of_app(folder: Path, *, before: bool) -> Path:
    """Copy the app, without the two lines when ``before``; return the copy's folder."""
    folder.mkdir(parents=True)
    shutil.copytree(
        REPOSITORY / "fixbn_flwr",
        folder / "fixbn_flwr",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    for file, now, then in ADDED if before else ():
        text = (folder / file).read_text()
        if text.count(now) != 1:
            raise FixBNError(f"{file} has {text.count(now)} lines with {now!r}, not one: name it")
        (folder / file).write_text(text.replace(now, then))
    return folder


def table(measured: Mapping[str, Rounds]) -> str:
    """Return seconds outside training as text, a line a variant."""
    lines = [f"{'seconds outside training':<34}{'median':>10}   rounds"]
    for name, run in measured.items():
        ordered = sorted(run.outside)
        values = ", ".join(f"{value:.1f}" for value in run.outside)
        lines.append(f"{name:<34}{ordered[len(ordered) // 2]:>10.1f}   {values}")
    return "\n".join(lines)


def report_of(measured: Mapping[str, Rounds]) -> dict[str, Any]:
    """Return what was measured for JSON."""
    return {name: vars(run) for name, run in measured.items()}
