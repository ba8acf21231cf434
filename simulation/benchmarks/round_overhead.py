"""Seconds per round outside training, between real processes on this machine.

Each variant of the app runs with parts of it switched off; see
`simulation.benchmarks.overhead_variants`. The model is ResNet-18 (122 arrays, 45 MB) and each
client takes one step on random images, so messages take most of a round. The bare exchange
(`simulation.benchmarks.bare_exchange`) sends as many bytes without training.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.runs.reader import read_metrics
from fixbn_flwr.errors import FixBNError
from simulation import REPOSITORY
from simulation.benchmarks.overhead_variants import Parts, variants
from simulation.benchmarks.random_images import TASK
from simulation.benchmarks.real_federation import real_federation

# As in deploy/start-supernode: seconds between two polls of a node's SuperExec.
QUICK_NODES = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}

BARE = "bare exchange"
WITHOUT_GATEWAY, WITH_GATEWAY = "without the gateway", "with the gateway"

PROJECT = """\
[project]
name = "overhead"
version = "0.1.0"
description = "Measures the overhead of a round"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fixbn"

[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"

[tool.flwr.app.config]
{config}
"""


@dataclass(frozen=True)
class Rounds:
    """The rounds of one run.

    Attributes:
        seconds: Of each round.
        train_seconds: Of the slowest client's training in each round.
        load: The machine's load average (1 minute) at the end of the run.
    """

    seconds: list[float]
    train_seconds: list[float]
    load: float

    @property
    def outside(self) -> list[float]:
        """The seconds outside training, without round 1, in which everything starts."""
        both = zip(self.seconds[1:], self.train_seconds[1:], strict=True)
        return [seconds - training for seconds, training in both]


def measure_all(*, rounds: int, nodes: int, repetitions: int) -> Iterator[tuple[str, Rounds]]:
    """Measure all variants and the bare exchange in turn; yield each run's name and rounds.

    Args:
        rounds: The rounds that count, after round 1.
        nodes: The number of SuperNodes. All of them train in each round.
        repetitions: How often each variant runs.

    Raises:
        FixBNError: If a run fails. The message is its log and those of the nodes.
    """
    runs: dict[str, Callable[..., Rounds]] = {
        name: partial(measure, parts) for name, parts in variants().items()
    }
    for _ in range(repetitions):
        for name, run in {**runs, BARE: measure_bare_exchange}.items():
            with tempfile.TemporaryDirectory() as folder:
                yield name, run(Path(folder), rounds=rounds, nodes=nodes)


def measure_gateway(*, rounds: int, nodes: int, repetitions: int) -> Iterator[tuple[str, Rounds]]:
    """Measure the app without and with a gateway in turn; see :func:`measure_all`."""
    for _ in range(repetitions):
        for name, gateway in ((WITHOUT_GATEWAY, False), (WITH_GATEWAY, True)):
            with tempfile.TemporaryDirectory() as folder:
                yield (
                    name,
                    measure(Parts(), Path(folder), rounds=rounds, nodes=nodes, gateway=gateway),
                )


def measure(
    parts: Parts, folder: Path, *, rounds: int, nodes: int, gateway: bool = False
) -> Rounds:
    """Run a variant of the app in a federation of real processes.

    Args:
        parts: The parts that the app has.
        folder: A directory for the app and the run folder.
        rounds: The rounds that count, after round 1.
        nodes: The number of SuperNodes.
        gateway: Whether they connect through a gateway.

    Raises:
        FixBNError: If the run fails. The message is its log and those of the nodes.
    """
    config: dict[str, Value] = {
        "task": "simulation.benchmarks.random_images:TASK",
        "partition": "iid",
        "local-steps": 1,
        "batch-size": 8,
        "num-server-rounds": rounds + 1,
        "evaluate-every": rounds + 1,
        "device": "cpu",
        "output-dir": str(folder),
        "run-name": "run",
        "state-dir": str(folder / "state") if parts.momentum_files else "",
    }
    app = make_app(folder / "app", parts.server_app, parts.client_app, config)
    _run(app, nodes, quick=parts.quick_polling, gateway=gateway)
    metrics = read_metrics(folder / "run")
    return Rounds(
        [line.seconds for line in metrics],
        [line.train_seconds or 0.0 for line in metrics],
        os.getloadavg()[0],
    )


def measure_bare_exchange(folder: Path, *, rounds: int, nodes: int) -> Rounds:
    """Send as many bytes as the model has to each node and back; see :func:`measure`."""
    output = folder / "seconds.json"
    state = TASK.models["resnet18"]("bn").state_dict().values()
    config: dict[str, Value] = {
        "nodes": nodes,
        "length": sum(tensor.numel() for tensor in state),
        "rounds": rounds + 1,
        "output": str(output),
    }
    module = "simulation.benchmarks.bare_exchange"
    _run(
        make_app(folder / "app", f"{module}:server", f"{module}:client", config), nodes, quick=True
    )
    seconds = json.loads(output.read_text())
    return Rounds(seconds, [0.0] * len(seconds), os.getloadavg()[0])


def make_app(folder: Path, server: str, client: str, config: Mapping[str, Value]) -> Path:
    """Write a Flower app with a copy of the package, which the processes then import.

    Args:
        folder: The app's directory, which must not exist.
        server: The reference to the server app.
        client: The reference to the client app.
        config: The run config.

    Returns:
        The app's directory.
    """
    shutil.copytree(
        REPOSITORY / "fixbn_flwr",
        folder / "fixbn_flwr",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in config.items())
    project = PROJECT.format(server=server, client=client, config=lines)
    (folder / "pyproject.toml").write_text(project)
    return folder


def _run(app: Path, nodes: int, *, quick: bool, gateway: bool = False) -> None:
    log: list[str] = []
    environment = {"PYTHONPATH": str(REPOSITORY)}
    of_nodes = QUICK_NODES if quick else {}
    with real_federation(
        nodes=nodes, secure=True, gateway=gateway, environment=environment, of_nodes=of_nodes
    ) as link:
        failure = link.run(app, {}, {}, log.append)
        if failure is not None:
            log += [link.node_log(number) for number in range(nodes)]
            raise FixBNError("\n".join([*log, f"the run did not complete ({failure})."]))


def table(measured: Mapping[str, list[Rounds]]) -> str:
    """Return the seconds outside training as text, a line per variant.

    The column "saved" is what a part saves: the difference between the median without it and the
    median with all parts, as a share of the former.
    """
    outside = {name: _outside(runs) for name, runs in measured.items()}
    medians = {name: statistics.median(seconds) for name, seconds in outside.items()}
    lines = [f"{'seconds outside training':<26}{'median':>8}{'saved':>8}   rounds"]
    for name, seconds in outside.items():
        saved = ""
        if name.startswith("without ") and "all parts" in medians:
            saved = f"{1 - medians['all parts'] / medians[name]:.0%}"
        each = ", ".join(f"{value:.1f}" for value in seconds)
        lines.append(f"{name:<26}{medians[name]:>8.1f}{saved:>8}   {each}")
    return "\n".join(lines)


def report_of(measured: Mapping[str, list[Rounds]]) -> dict[str, Any]:
    """Return all seconds outside training and the runs of each variant, for JSON."""
    return {
        name: {"outside": _outside(runs), "repetitions": [asdict(run) for run in runs]}
        for name, runs in measured.items()
    }


def _outside(runs: list[Rounds]) -> list[float]:
    return [seconds for run in runs for seconds in run.outside]
