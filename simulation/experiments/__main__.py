"""Run the paper's experiments, which are TOML files in simulation/experiments.

python -m simulation.experiments list                            # all experiments
python -m simulation.experiments run normalisers --scale cpu     # resumes where it was stopped
python -m simulation.experiments report normalisers --scale cpu  # writes tables and figures
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import torch
import typer

from fixbn_flwr.app.command_errors import run_commands
from fixbn_flwr.tasks import get_task, load_splits
from simulation import REPOSITORY
from simulation.experiments.experiment import Experiment, Scale, names
from simulation.experiments.matching_results import search_of
from simulation.experiments.result_log import RESULTS
from simulation.experiments.runner import Runner
from simulation.reporting.markdown_report import write_report

_HELP = (__doc__ or "").replace("\n\n", "\n\n\b\n")  # \b keeps the lines of the examples
cli = typer.Typer(help=_HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


Name = Annotated[str, typer.Argument(help="Name of the experiment; see `list`.")]
OfScale = Annotated[
    Scale, typer.Option(help="smoke: seconds; cpu: two cores, small images; gpu: full size.")
]
Output = Annotated[Path, typer.Option(help="Directory of results, tables and figures.")]


@cli.command("list")
def show() -> None:
    """List the experiments, with the number of runs at each scale."""
    for name in names():
        experiments = [Experiment(name, scale) for scale in Scale]
        print(f"{name}: {experiments[0].title}")
        for experiment in experiments:
            runs, searches = len(experiment.outline()), len(search_of(experiment, []).missing)
            print(
                f"    {experiment.scale:<6} {runs:>4} runs, and {searches:>4} or more to find"
                " learning rates"
            )


@cli.command()
def run(
    name: Name,
    scale: OfScale = Scale.CPU,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Directory of the data sets. Default: ../shared/data, if it exists."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time. Default: one per core.")
    ] = None,
    device: Annotated[str, typer.Option(help="Value of the run config's key `device`.")] = "auto",
    output: Output = RESULTS,
    folders: Annotated[Path, typer.Option(help="Directory for run folders.")] = Path(
        "runs/experiments"
    ),
) -> None:
    """Run what has no result yet, then write the report."""
    shared = REPOSITORY.parent / "shared" / "data"
    data = data_dir or (shared if shared.is_dir() else None)
    machine = {"device": device, "data-dir": "" if data is None else str(data.resolve())}
    experiment = Experiment(name, scale)
    # Load here, so that missing data is an error before any run, and is downloaded only once.
    for task in {str(planned.run_config["task"]) for planned in experiment.outline()}:
        load_splits(get_task(task), data)
    Runner(experiment, output, folders.resolve(), workers or _workers(device), machine).run()
    write_report(experiment, output)


@cli.command()
def report(name: Name, scale: OfScale = Scale.CPU, output: Output = RESULTS) -> None:
    """Write tables and figures of the completed runs."""
    write_report(Experiment(name, scale), output)


def _workers(device: str) -> int:
    """Return one worker per core, and at most four on a GPU because of its memory."""
    cores = len(os.sched_getaffinity(0))
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return min(cores, 4) if on_gpu else cores


def main() -> None:
    """Run the command line; print a FixBNError as a message and exit with code 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, also stops the workers
    run_commands(cli)


if __name__ == "__main__":
    main()
