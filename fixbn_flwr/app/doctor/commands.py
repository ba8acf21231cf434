"""The command `fixbn doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fixbn_flwr.app.doctor.finding import Finding
from fixbn_flwr.app.homes.commands import HOMES

# The rest is imported where it is used: the help must not wait for torch.


def doctor(
    superlink: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Also ask this SuperLink.")
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(help="The CA certificate of a SuperLink with TLS.", exists=True),
    ] = None,
    output_dir: Annotated[
        Path, typer.Option(help="The folder for run folders with their checkpoints.")
    ] = Path("runs"),
    state_dir: Annotated[
        Path | None, typer.Option(help="The folder for the clients' momentum.")
    ] = None,
    deployment: Annotated[
        bool,
        typer.Option("--deployment", help="Only report the SuperLink, gateway and nodes here."),
    ] = False,
    home: Annotated[Path, typer.Option(help="The folder with their homes.")] = HOMES,
) -> None:
    """Print what this machine has for runs, and what to do about each problem.

    The exit code is 1 if there is a problem.
    """
    if deployment:
        from fixbn_flwr.app.doctor.deployment import deployment as report

        _show([*report(home)])
        return
    from fixbn_flwr.app.doctor.checks import disk, machine, software

    findings = [*software(), *machine(), disk(output_dir, "run folders", "output-dir")]
    if state_dir is None:
        findings.append(
            Finding("the clients' momentum is kept in Flower's state; --state-dir checks a folder")
        )
    else:
        findings.append(disk(state_dir, "the clients' momentum", "state-dir"))
    if superlink is not None:
        from fixbn_flwr.app.doctor.superlink import ask_superlink

        findings.append(ask_superlink(superlink, ca))
    _show(findings)


def _show(findings: list[Finding]) -> None:
    for finding in findings:
        print(finding)
    if any(finding.is_problem for finding in findings):
        raise typer.Exit(1)
