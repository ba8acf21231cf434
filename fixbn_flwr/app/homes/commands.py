"""The command `fixbn clean`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fixbn_flwr.errors import ConfigError

HOMES = Path("~/.fixbn")
DAYS = 30


def clean(
    home: Annotated[
        Path, typer.Option(help="The folder with the homes of SuperLink, gateway and SuperNodes.")
    ] = HOMES,
    older_than: Annotated[
        int, typer.Option(min=1, help="Only what was not used for this many days.")
    ] = DAYS,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete what real machines keep of old runs: momentum, logs, apps, temporary folders.

    It lists everything first, and asks. A run whose momentum is deleted can be resumed, but its
    clients start without momentum.
    """
    from datetime import datetime, timedelta

    from fixbn_flwr.app.homes.cleaning import leftovers
    from fixbn_flwr.app.homes.home import homes_in

    before = datetime.now().astimezone() - timedelta(days=older_than)
    homes = homes_in(home.expanduser().absolute())
    found = list(leftovers(homes, before))
    for leftover in found:
        print(f"{leftover}. Kept: {leftover.kept}" if leftover.kept else leftover)
    ready = [leftover for leftover in found if not leftover.kept]
    if not ready:
        print(f"Nothing that can be deleted is older than {older_than} days.")
    size = sum(leftover.size for leftover in ready) / 1e6
    failed = any(leftover.failed for leftover in found)
    if ready and (yes or typer.confirm(f"Delete {len(ready)} of these, {size:.1f} MB?")):
        listed = {leftover.text for leftover in ready}
        for leftover in leftovers(homes, before):  # again: a run may use something by now
            if leftover.text in listed and not leftover.kept:
                try:
                    leftover.delete()
                except ConfigError as error:
                    failed = True
                    print(f"Not deleted: {leftover}. {error}")
                else:
                    print(f"Deleted: {leftover}")
    if failed:
        raise typer.Exit(1)
