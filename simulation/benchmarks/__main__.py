"""How fast and how large a simulation is on this machine, beside PyTorch alone.

python -m simulation.benchmarks             # images per second: bare loop, our app, a quickstart
python -m simulation.benchmarks memory      # peak memory with 10 and with 1,000 clients
python -m simulation.benchmarks deployment  # seconds outside training, real SuperLink and SuperNodes

Speed times the same local steps (ResNet-20 on CIFAR-10, 10 clients x 400 images a round in batches
of 20, float32) three ways, in turn, several times over: (a) in a bare PyTorch loop that uses all
cores, (b) in our app through `flwr run`, (c) through `flwr run` in a client written as Flower's
PyTorch quickstart writes it. Of (b) and (c) warm rounds count: neither the first, nor one in which
the model is evaluated. Close other programs first: the load average is part of the report, and so
are images per second of processor time, which a busy machine distorts less.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fixbn_flwr.app.cli import run_commands
from fixbn_flwr.app.local_superlink import local_superlink
from fixbn_flwr.app.runs.environment import hardware, versions
from fixbn_flwr.errors import ConfigError
from simulation.benchmarks.bare_loop import BareLoops, variants
from simulation.benchmarks.measured_run import (
    BATCH,
    CLIENTS,
    REPOSITORY,
    STEPS,
    Measurement,
    our_app,
    quickstart,
)
from simulation.benchmarks.round_overhead import (
    Rounds,
    measure,
    measure_bare_exchange,
    report_of,
    table,
)

OURS, QUICK = "our app (b)", "quickstart (c)"

cli = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder with cifar-10-batches-py. Default: ../shared/data if there."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes. Default: one a core.")]
Output = Annotated[Path | None, typer.Option(help="Write the report as JSON, too.")]


@dataclass
class Machine:
    """What a measurement was made on, and how busy that was before and after."""

    command: str = field(default_factory=lambda: " ".join(sys.orig_argv))
    date: str = field(default_factory=lambda: datetime.now().astimezone().isoformat("T", "seconds"))
    hardware: dict[str, Any] = field(default_factory=hardware)
    versions: dict[str, str] = field(default_factory=versions)
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)
    load_after: tuple[float, float, float] | None = None

    def show(self) -> str:
        """Return the machine in one line."""
        loads = [f"{load[0]:.1f}" for load in (self.load_before, self.load_after) if load]
        names = " ".join(f"{name} {version}" for name, version in self.versions.items())
        return (
            f"{self.hardware['cpu']}, {self.hardware['cores']} cores; {names}; "
            f"load {' -> '.join(loads)}; {self.date}"
        )


@cli.callback(invoke_without_command=True)
def speed(
    context: typer.Context,
    data_dir: DataDir = None,
    rounds: Annotated[int, typer.Option(min=1, help="Warm rounds a repetition.")] = 3,
    repetitions: Annotated[int, typer.Option(min=1, help="How often all take turns.")] = 2,
    local_steps: Annotated[int, typer.Option(min=1, help="Of a client in a round.")] = STEPS,
    workers: Workers = None,
    output: Output = None,
) -> None:
    """Compare images per second; the default takes about five minutes on two idle cores."""
    if context.invoked_subcommand is not None:
        return
    machine, cores = Machine(), workers or os.cpu_count() or 1
    data = find_data(data_dir)
    speeds: dict[str, list[float]] = {}
    efficiencies: dict[str, list[float]] = {}
    runs: dict[str, list[Measurement]] = {OURS: [], QUICK: []}
    images = CLIENTS * local_steps * BATCH

    def record(name: str, speed: list[float], efficiency: float) -> None:
        speeds.setdefault(name, []).extend(speed)
        efficiencies.setdefault(name, []).append(efficiency)
        values = ", ".join(f"{value:.0f}" for value in speed)
        _progress(f"{name}: {values} images/s, load {os.getloadavg()[0]:.1f}")

    with tempfile.TemporaryDirectory() as scratch, BareLoops(cores, data) as loops:
        for repetition in range(1, repetitions + 1):
            _progress(f"repetition {repetition} of {repetitions}")
            for variant in variants(cores):
                speed_now, efficiency = loops.run(variant, CLIENTS * local_steps, BATCH)
                record(variant.name, [speed_now], efficiency)
            for name in (OURS, QUICK):
                folder = Path(scratch) / f"{name[:3]}-{repetition}"
                measure = our_app if name == OURS else quickstart
                with local_superlink() as link:
                    run = measure(link, folder, data, rounds, cores, steps=local_steps)
                runs[name].append(run)
                of_rounds = [images / seconds for seconds in run.warm_rounds]
                record(name, of_rounds, images * rounds / run.processor)
    machine.load_after = os.getloadavg()
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    efficiency_medians = {name: statistics.median(v) for name, v in efficiencies.items()}
    report = {
        **asdict(machine),
        "job": {
            "clients": CLIENTS,
            "local-steps": local_steps,
            "batch-size": BATCH,
            "workers": cores,
        },
        "images_per_second": medians,
        "images_per_processor_second": efficiency_medians,
        "ratios": ratios(medians),
        "ratios_by_processor_time": ratios(efficiency_medians),
        "samples": {"images_per_second": speeds, "images_per_processor_second": efficiencies},
        "runs": {name: [asdict(run) for run in of] for name, of in runs.items()},
    }
    print(f"\n{speed_table(medians, efficiency_medians, runs)}\n\n{machine.show()}")
    _write(output, report)


@cli.command()
def memory(
    data_dir: DataDir = None,
    rounds: Annotated[int, typer.Option(min=1, help="Warm rounds.")] = 20,
    clients: Annotated[int, typer.Option(min=CLIENTS, help="Of the large federation.")] = 1000,
    workers: Workers = None,
    output: Output = None,
) -> None:
    """Compare peak memory of a federation of 10 clients and a large one; 10 train in a round.

    The large one runs twice: with momentum buffers in Flower's state, which the server's process
    holds for every client that has trained, and in files (state-dir).
    """
    machine, cores = Machine(), workers or os.cpu_count() or 1
    data = find_data(data_dir)
    runs: dict[str, Measurement] = {}
    for number, in_files in ((CLIENTS, False), (clients, False), (clients, True)):
        name = f"{number} clients, buffers in {'files' if in_files else 'state'}"
        _progress(name)
        with tempfile.TemporaryDirectory() as scratch, local_superlink() as link:
            folder = Path(scratch)
            state_dir = str(folder / "state") if in_files else ""
            runs[name] = our_app(
                link, folder / "run", data, rounds, cores,
                steps=1, clients=number, state_dir=state_dir,
            )  # fmt: skip
        _progress(start_table({name: [runs[name]]}))
    machine.load_after = os.getloadavg()
    print(f"\n{start_table({name: [run] for name, run in runs.items()})}\n\n{machine.show()}")
    _write(output, {**asdict(machine), "runs": {n: asdict(run) for n, run in runs.items()}})


@cli.command()
def deployment(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count, after the first.")] = 5,
    nodes: Annotated[int, typer.Option(min=1, help="SuperNodes, on this machine.")] = 2,
    output: Output = None,
) -> None:
    """Seconds a round outside training: TLS, authentication, database; before and after.

    A round's seconds less those of its slowest client's training, with ResNet-18: as Flower does
    it, and with packed arrays, quick polling and workers that stay alive; and a bare exchange of
    as many bytes, with clients that only add a number.
    """
    machine = Machine()
    measured: dict[str, Rounds] = {}
    ways: dict[str, Callable[..., Rounds]] = {
        "before": partial(measure, before=True),
        "after": partial(measure, before=False),
        "bare": measure_bare_exchange,
    }
    for name, way in ways.items():
        _progress(f"{name}, load {os.getloadavg()[0]:.1f}")
        with tempfile.TemporaryDirectory() as scratch:
            measured[name] = way(Path(scratch), rounds=rounds, nodes=nodes)
        _progress(table({name: measured[name]}))
    machine.load_after = os.getloadavg()
    print(f"\n{table(measured)}\n\n{machine.show()}")
    _write(output, {**asdict(machine), "nodes": nodes, "runs": report_of(measured)})


def find_data(data_dir: Path | None) -> Path:
    """Return the folder that holds CIFAR-10.

    Raises:
        ConfigError: it is not there; the message says how to get it.
    """
    folder = (data_dir or REPOSITORY.parent / "shared" / "data").expanduser().resolve()
    if not (folder / "cifar-10-batches-py").is_dir():
        raise ConfigError(
            f"{folder} has no cifar-10-batches-py, and this benchmark trains on the real CIFAR-10: "
            "give --data-dir. `fixbn run task=cifar10 num-server-rounds=2` downloads it to "
            "~/.cache/fixbn-flwr."
        )
    return folder


def ratios(medians: Mapping[str, float]) -> dict[str, float]:
    """Our app against the fastest bare loop, and against the quickstart."""
    bare = max(speed for name, speed in medians.items() if name not in (OURS, QUICK))
    return {"b/a": medians[OURS] / bare, "b/c": medians[OURS] / medians[QUICK]}


def speed_table(
    speeds: Mapping[str, float],
    efficiencies: Mapping[str, float],
    runs: Mapping[str, list[Measurement]],
) -> str:
    """Return speeds, their ratios, start-up and memory as text."""
    lines = [f"{'images':<38}{'a second':>14}{'a second of processor time':>30}"]
    lines += [f"{name:<38}{speeds[name]:>14.0f}{efficiencies[name]:>30.0f}" for name in speeds]
    found, by_processor = ratios(speeds), ratios(efficiencies)
    for ratio, label, aim in (
        ("b/a", "our app / fastest bare loop", 0.87),
        ("b/c", "our app / quickstart", 1.5),
    ):
        label_and_aim = f"{label} (aim: {aim})"
        lines.append(f"{label_and_aim:<38}{found[ratio]:>14.2f}{by_processor[ratio]:>30.2f}")
    return "\n".join([*lines, "", start_table(runs)])


def start_table(runs: Mapping[str, list[Measurement]]) -> str:
    """Return seconds from submission to round 2, and peak memory, as text."""
    roles = ("server", "worker", "ray")
    lines = [f"{'':<38}{'to round 2':>14}" + "".join(f"{role + ' MB':>12}" for role in roles)]
    for name, of in runs.items():
        start = statistics.median(run.first_round for run in of)
        peaks = [max(run.peak_megabytes.get(role, 0.0) for run in of) for role in roles]
        lines.append(f"{name:<38}{start:>12.1f} s" + "".join(f"{peak:>12.0f}" for peak in peaks))
    return "\n".join(lines)


def _progress(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _write(output: Path | None, report: Mapping[str, Any]) -> None:
    if output is not None:
        output.write_text(json.dumps(report, indent=2) + "\n")
        print(f"Report: {output}")


def main() -> None:
    """Run the command line; an error of ours is a message and exit code 1."""
    run_commands(cli, ["deployment" if word == "--deployment" else word for word in sys.argv[1:]])


if __name__ == "__main__":
    main()
