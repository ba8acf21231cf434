"""The commands `fixbn list` and `fixbn delete`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

# The rest is imported where it is used: the help must not wait for it.

SHOWN = 3  # lines of the reason of a failure


def list_runs(
    folder: Annotated[Path, typer.Argument(help="The folder with the run folders.")] = Path("runs"),
) -> None:
    """List the runs in a folder: method, task, rounds, accuracy and state."""
    from fixbn_flwr.app.runs.listing import run_table, runs_in

    runs, problems = runs_in(folder.expanduser().absolute())
    if runs:
        print(run_table(runs))
    for run in runs:
        if run.state == "failed":
            reason = str(run.config["failure"]).splitlines()[:SHOWN]
            print("\n".join([f"{run.path.name} failed: {reason[0]}", *reason[1:]]))
    for problem in problems:
        print(f"Not listed: {problem}", file=sys.stderr)


def delete(
    folder: Annotated[Path, typer.Argument(help="The run folder.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a run, and its clients' momentum files on this machine."""
    from fixbn_flwr.app.overrides import absolute
    from fixbn_flwr.app.runs.momentum_files import delete_run
    from fixbn_flwr.app.runs.reader import read_config

    path = Path(absolute("folder", str(folder)))
    read_config(path)
    if yes or typer.confirm(f"Delete {path} and its clients' momentum files?"):
        for deleted in delete_run(path):
            print(f"Deleted {deleted}")
