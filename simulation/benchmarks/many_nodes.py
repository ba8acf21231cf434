"""Many SuperNodes on this machine, with keys and through a gateway; some leave and come back.

What it runs is in `simulation.benchmarks.many_nodes_app`.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.errors import FixBNError
from simulation import REPOSITORY
from simulation.benchmarks.real_federation import RealFederation, real_federation
from simulation.benchmarks.round_overhead import make_app

APP = "simulation.benchmarks.many_nodes_app"
POLL = 0.5  # seconds

# The nodes share the cores of this machine, so each looks for work less often than a node that has
# a machine of its own; in seconds.
NODES = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "2", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Load:
    """The measurement.

    Attributes:
        nodes: The number of SuperNodes.
        per_round: How many of them get a message in each round.
        left: How many stopped after a quarter of the rounds, and started again after a half.
        start_seconds: Until all were connected.
        node_megabytes: The memory of a node with its SuperExec, in 10^6 bytes, shared pages split.
        superlink_megabytes: The memory of the SuperLink before the run and after each round.
        rounds: A line per round; see `many_nodes_app.exchange`.
    """

    nodes: int
    per_round: int
    left: int
    start_seconds: float
    node_megabytes: float
    superlink_megabytes: list[float]
    rounds: list[dict[str, float]]


def measure_load(*, nodes: int, per_round: int, rounds: int, show: Callable[[str], None]) -> Load:
    """Start the nodes, run the app, and let a tenth of the nodes leave and come back.

    Raises:
        FixBNError: If the run fails. The message is its log.
    """
    left, started, log = max(1, nodes // 10), time.monotonic(), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rounds.jsonl"
        output.touch()
        config: dict[str, Value] = {
            "nodes": nodes,
            "per-round": per_round,
            "rounds": rounds,
            "output": str(output),
        }
        app = make_app(Path(folder) / "app", f"{APP}:server", f"{APP}:client", config)
        environment = {"PYTHONPATH": str(REPOSITORY)}
        with real_federation(
            nodes=nodes, secure=True, gateway=True, environment=environment, of_nodes=NODES
        ) as link:
            seconds = time.monotonic() - started
            show(f"{nodes} nodes are connected after {seconds:.0f} s")
            of_node, memory = link.node_megabytes(), [_megabytes(link.superlink_pid)]
            ended = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                watch = pool.submit(_watch, link, output, memory, left, rounds, ended, show)
                try:
                    failure = link.run(app, {}, {}, log.append)
                finally:
                    ended.set()
                watch.result()  # raises what went wrong there
            if failure is not None:
                raise FixBNError("\n".join([*log, f"the run did not complete ({failure})."]))
            lines = [json.loads(line) for line in output.read_text().splitlines()]
    return Load(nodes, per_round, left, seconds, of_node, memory, lines)


def _watch(
    link: RealFederation,
    output: Path,
    memory: list[float],
    left: int,
    rounds: int,
    ended: threading.Event,
    show: Callable[[str], None],
) -> None:
    """Note the SuperLink's memory after each round; stop and start some nodes."""
    while not ended.wait(POLL):
        lines = output.read_text().splitlines()
        for line in lines[len(memory) - 1 :]:
            memory.append(_megabytes(link.superlink_pid))
            show(f"{memory[-1]:.0f} MB {line}")
            if len(memory) - 1 == rounds // 4:
                for number in range(left):
                    link.stop_node(number)
            if len(memory) - 1 == rounds // 2:
                for number in range(left):
                    link.start_node(number)


def _megabytes(process: int) -> float:
    return float(psutil.Process(process).memory_info().rss / 1e6)


def counted(rounds: Sequence[Mapping[str, float]]) -> dict[str, int]:
    """Return the messages of all rounds: sent, correct, wrong, errors and lost."""
    total = {
        key: int(sum(line[key] for line in rounds))
        for key in ("sent", "correct", "wrong", "errors")
    }
    return {**total, "lost": total["sent"] - sum(total[k] for k in ("correct", "wrong", "errors"))}


def load_table(load: Load) -> str:
    """Return the measurement as text."""
    messages = counted(load.rounds)
    seconds = [line["seconds"] for line in load.rounds]
    return (
        f"{load.nodes} SuperNodes, {load.node_megabytes:.0f} MB each, connected after "
        f"{load.start_seconds:.0f} s\n"
        f"{len(seconds)} rounds of {min(seconds):.1f} to {max(seconds):.1f} s, "
        f"{load.per_round} messages each\n"
        f"{messages['sent']} sent, {messages['correct']} correct replies, "
        f"{messages['wrong']} wrong, {messages['errors']} errors of nodes that left, "
        f"{messages['lost']} lost\n"
        f"SuperLink: {load.superlink_megabytes[0]:.0f} MB before, "
        f"{load.superlink_megabytes[-1]:.0f} MB after"
    )
