"""The paper's experiments: each a TOML file in simulation/experiments, run by one command.

python -m simulation.experiments list                            # what there is
python -m simulation.experiments run normalisers --scale cpu     # resumes where it was stopped
python -m simulation.experiments report normalisers --scale cpu  # tables and figures so far
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import torch
import typer

from fixbn_flwr.app.cli import run_commands
from fixbn_flwr.tasks import get_task, load_splits
from simulation import REPOSITORY
from simulation.experiments.experiment import Experiment, Scale, names
from simulation.experiments.result_log import RESULTS
from simulation.experiments.runner import Runner
from simulation.reporting.markdown_report import write_report

_HELP = (__doc__ or "").replace("\n\n", "\n\n\b\n")  # \b: the lines of the examples stay
cli = typer.Typer(help=_HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


Name = Annotated[str, typer.Argument(help="Of an experiment, see `list`.")]
OfScale = Annotated[Scale, typer.Option(help="Seconds in CI; an hour on two cores; a GPU.")]
Output = Annotated[Path, typer.Option(help="Where results, tables and figures are kept.")]


@cli.command("list")
def show() -> None:
    """Name the experiments, and how much there is to do at each scale."""
    for name in names():
        experiments = [Experiment(name, scale) for scale in Scale]
        print(f"{name}: {experiments[0].title}")
        for it in experiments:
            runs, searches = len(it.outline()), len(it.searches())
            print(f"    {it.scale:<6} {runs:>4} runs, {searches:>4} to find learning rates")


@cli.command()
def run(
    name: Name,
    scale: OfScale = Scale.CPU,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data sets. Default: ../shared/data if there.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. Default: one a core.")
    ] = None,
    device: Annotated[str, typer.Option(help="As the run config's key `device`.")] = "auto",
    output: Output = RESULTS,
    folders: Annotated[Path, typer.Option(help="Where run folders are made.")] = Path(
        "runs/experiments"
    ),
) -> None:
    """Make the runs that are missing, then report."""
    shared = REPOSITORY.parent / "shared" / "data"
    data = data_dir or (shared if shared.is_dir() else None)
    machine = {"device": device, "data-dir": "" if data is None else str(data.resolve())}
    experiment = Experiment(name, scale)
    # Once and here: what is missing is told before any run, or downloaded by one process only.
    for task in {str(planned.run_config["task"]) for planned in experiment.outline()}:
        load_splits(get_task(task), data)
    Runner(experiment, output, folders.resolve(), workers or _workers(device), machine).run()
    write_report(experiment, output)


@cli.command()
def report(name: Name, scale: OfScale = Scale.CPU, output: Output = RESULTS) -> None:
    """Write tables and figures of the runs that have ended."""
    write_report(Experiment(name, scale), output)


def _workers(device: str) -> int:
    """One a core; on a GPU, whose kernels runs share, few enough for its memory."""
    cores = len(os.sched_getaffinity(0))
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return min(cores, 4) if on_gpu else cores


def main() -> None:
    """Run the command line; an error of ours is a message and exit code 1, not a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: ends the workers, too
    run_commands(cli)


if __name__ == "__main__":
    main()
