"""The command `fixbn report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# The rest is imported where it is used: the help must not wait for torch.


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The run folders.")],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The HTML file. Default: report.html in RUN; in the working directory for "
            "several runs.",
        ),
    ] = None,
    no_models: Annotated[
        bool,
        typer.Option(
            "--no-models",
            help="Leave out the clients' accuracy and the confusion matrix, which test the model "
            "on the data set: minutes for a large one.",
        ),
    ] = False,
) -> None:
    """Write a report of runs: one HTML page that opens without a network."""
    from fixbn_flwr.app.report.page import write_report

    if output is None:
        output = (runs[0] if len(runs) == 1 else Path()) / "report.html"
    write_report(runs, output, test_models=not no_models)
    print(f"Report: {output}")
