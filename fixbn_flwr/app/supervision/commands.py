"""The command `fixbn supervise`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fixbn_flwr.errors import FixBNError

# The rest is imported where it is used: the help must not wait for it.

FAILED = 78  # exit status; a crash of Python has 1, after which systemd supervises again


def supervise(
    folder: Annotated[Path, typer.Argument(help="The run folder, new or of a stopped run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Run config.")
    ] = None,
    superlink: Annotated[
        str, typer.Option(help="Connection in Flower's config.toml. Default: its default.")
    ] = "",
    app: Annotated[
        Path | None,
        typer.Option(help="Directory of your own app (`fixbn new`). Default: fixbn-flwr's."),
    ] = None,
) -> None:
    """Run on real machines, and resume by itself when the SuperLink or its machine restarts.

    It belongs on the SuperLink's machine, where the run folder is.
    """
    from fixbn_flwr.app.flower_commands import FlowerCommands
    from fixbn_flwr.app.overrides import absolute
    from fixbn_flwr.app.supervision.supervised_config import supervised_config
    from fixbn_flwr.app.supervision.supervisor import Supervisor

    say = partial(print, flush=True)
    try:
        path = Path(absolute("folder", str(folder)))
        run_config = supervised_config(path, overrides or [], app)
        Supervisor(FlowerCommands(superlink), app, run_config, path, say).supervise()
    except KeyboardInterrupt:
        say("A run that has started goes on without supervision; `flwr stop RUN_ID` stops it.")
        raise
    except FixBNError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(FAILED) from error
