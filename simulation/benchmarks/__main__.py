"""Measure the speed, memory and overhead of a federation on this machine.

python -m simulation.benchmarks             # speed, start-up and memory, beside other programs
python -m simulation.benchmarks gpu         # the same on a GPU
python -m simulation.benchmarks deployment  # seconds outside training, between real processes
python -m simulation.benchmarks load        # the same with a gateway, and many nodes

Close other programs first. The report includes the load average.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fixbn_flwr.app.command_errors import run_commands
from fixbn_flwr.app.workbench import find_device
from fixbn_flwr.errors import ConfigError
from simulation import REPOSITORY
from simulation.benchmarks.gpu_speed import JOBS, gpu_table, measure_gpu
from simulation.benchmarks.machine import Machine, progress, write_report
from simulation.benchmarks.many_nodes import load_table, measure_load
from simulation.benchmarks.measured_run import BATCH, CLIENTS
from simulation.benchmarks.peak_memory import measure_memory, memory_table
from simulation.benchmarks.round_overhead import (
    Rounds,
    measure_all,
    measure_gateway,
    report_of,
    table,
)
from simulation.benchmarks.speed import measure_speeds
from simulation.benchmarks.start_up import measure_start, start_table

_HELP = (__doc__ or "").replace("\n\n", "\n\n\b\n", 1)  # \b keeps the lines of the examples
cli = typer.Typer(help=_HELP, add_completion=False, rich_markup_mode=None)

DataDir = Annotated[
    Path | None,
    typer.Option(help="Directory with cifar-10-batches-py. Default: ../shared/data."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")]
Output = Annotated[Path | None, typer.Option(help="Also write the report to this JSON file.")]


@cli.callback(invoke_without_command=True)
def everything(
    context: typer.Context,
    data_dir: DataDir = None,
    rounds: Annotated[int, typer.Option(min=1, help="Warm rounds per repetition.")] = 3,
    repetitions: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 3,
    steps: Annotated[list[int] | None, typer.Option(help="Local steps.")] = None,
    clients: Annotated[list[int] | None, typer.Option(help="Clients, for the memory.")] = None,
    memory_rounds: Annotated[int, typer.Option(min=1, help="Rounds, for the memory.")] = 100,
    workers: Workers = None,
    output: Output = None,
) -> None:
    """Measure speed, start-up and memory; the default takes about half an hour on two cores."""
    if context.invoked_subcommand is not None:
        return
    machine, cores, data = Machine(), workers or os.cpu_count() or 1, find_data(data_dir)
    start = measure_start(repetitions)
    speeds = measure_speeds(
        data, rounds=rounds, repetitions=repetitions, steps=steps or [1, 5, 20], workers=cores
    )
    memory = measure_memory(
        data, rounds=memory_rounds, clients=clients or [10, 1_000, 10_000], workers=cores
    )
    machine.load_after = os.getloadavg()
    print(f"\n{speeds.table()}\n\n{start_table(start)}\n\n{memory_table(memory)}\n\n{machine}")
    job = {"clients-per-round": CLIENTS, "batch-size": BATCH, "rounds": rounds, "workers": cores}
    report = {
        **asdict(machine),
        "job": job,
        "speed": speeds.report(),
        "start": start,
        "memory": {number: asdict(run) for number, run in memory.items()},
    }
    write_report(output, report)


@cli.command()
def deployment(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds per run, after the first.")] = 3,
    nodes: Annotated[int, typer.Option(min=1, help="SuperNodes on this machine.")] = 2,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    output: Output = None,
) -> None:
    """Measure the seconds per round outside training, with parts of the app switched off.

    The processes use TLS, node authentication and a database. The variants are the app with all
    parts, without each of packed arrays, quick polling, the worker and momentum in files, and
    without all four. A bare exchange sends as many bytes without training. They run in turn.
    """
    machine = Machine()
    measured = collect(measure_all(rounds=rounds, nodes=nodes, repetitions=repetitions))
    machine.load_after = os.getloadavg()
    print(f"\n{table(measured)}\n\n{machine}")
    write_report(output, {**asdict(machine), "nodes": nodes, "runs": report_of(measured)})


@cli.command()
def load(
    nodes: Annotated[int, typer.Option(min=1, help="SuperNodes on this machine.")] = 50,
    per_round: Annotated[int, typer.Option(min=1, help="Messages in each round.")] = 10,
    rounds: Annotated[int, typer.Option(min=4, help="Rounds with all nodes.")] = 20,
    gateway_rounds: Annotated[int, typer.Option(min=1, help="Rounds with two nodes.")] = 3,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs with two nodes.")] = 2,
    output: Output = None,
) -> None:
    """Measure what the gateway costs a round, and many SuperNodes of which a tenth leave.

    The processes use TLS, node authentication and a database. Two nodes train ResNet-18 as in
    `deployment`, with and without a gateway. Many exchange a small array through a gateway.
    """
    machine = Machine()
    measured = collect(measure_gateway(rounds=gateway_rounds, nodes=2, repetitions=repetitions))
    many = measure_load(nodes=nodes, per_round=per_round, rounds=rounds, show=progress)
    machine.load_after = os.getloadavg()
    print(f"\n{table(measured)}\n\n{load_table(many)}\n\n{machine}")
    write_report(output, {**asdict(machine), "runs": report_of(measured), "load": asdict(many)})


def collect(runs: Iterable[tuple[str, Rounds]]) -> dict[str, list[Rounds]]:
    """Return the runs of each variant; report each run as it ends."""
    measured: dict[str, list[Rounds]] = {}
    for name, run in runs:
        measured.setdefault(name, []).append(run)
        seconds = ", ".join(f"{value:.1f}" for value in run.outside)
        progress(f"{name}: {seconds} s, load {run.load:.1f}")
    return measured


@cli.command()
def gpu(
    rounds: Annotated[int, typer.Option(min=1, help="Warm rounds.")] = 5,
    device: Annotated[str, typer.Option(help="The device.")] = "cuda",
    output: Output = None,
) -> None:
    """Measure rounds on a GPU: the engine, without CUDA graphs, bare loops, and `flwr run`."""
    find_device(device)
    machine = Machine()
    measured = measure_gpu(JOBS, device, rounds=rounds)
    machine.load_after = os.getloadavg()
    print(f"\n{gpu_table(measured)}\n\n{machine}")
    write_report(output, {**asdict(machine), "jobs": measured})


def find_data(data_dir: Path | None) -> Path:
    """Return the directory that holds CIFAR-10.

    Raises:
        ConfigError: If it does not hold it.
    """
    folder = (data_dir or REPOSITORY.parent / "shared" / "data").expanduser().resolve()
    if not (folder / "cifar-10-batches-py").is_dir():
        raise ConfigError(
            f"{folder} has no cifar-10-batches-py, and this benchmark trains on CIFAR-10: set "
            "--data-dir. `fixbn run task=cifar10 num-server-rounds=2` downloads it to "
            "~/.cache/fixbn-flwr."
        )
    return folder


if __name__ == "__main__":
    run_commands(cli)
