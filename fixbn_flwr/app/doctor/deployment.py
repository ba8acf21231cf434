"""Check the homes of SuperLink, gateway and SuperNodes: disk, memory, and what is in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from fixbn_flwr.app.doctor.checks import ENOUGH_DISK, GB
from fixbn_flwr.app.doctor.finding import Finding
from fixbn_flwr.app.homes.commands import DAYS
from fixbn_flwr.app.homes.home import DATABASE, Home, homes_in, last_use
from fixbn_flwr.app.homes.temporary import abandoned
from fixbn_flwr.persistence.file_sizes import bytes_of

LARGE = 1e9  # bytes
MB = 1e6
CLEAN = "run `fixbn clean`"


def deployment(folder: Path) -> Iterator[Finding]:
    """Report each home in a folder, and temporary folders.

    Raises:
        ConfigError: If the folder has no homes.
    """
    for home in homes_in(folder.expanduser().absolute()):
        yield _machine(home)
        yield from _contents(home)
        yield from _momentum(home)
    left = abandoned(datetime.now().astimezone())
    size = bytes_of(*left)
    yield Finding(
        f"{len(left)} temporary folders of ended processes, {size / MB:.1f} MB",
        "run `fixbn clean --older-than 1`" if size > LARGE else "",
        optional=True,
    )


def _machine(home: Home) -> Finding:
    free = shutil.disk_usage(home.path).free / GB
    processes = home.processes
    state = f"{len(processes)} processes with {_memory(processes) / MB:.0f} MB"
    if not processes:
        state = "its processes cannot be seen from here" if home.is_running else "no process"
    text = f"{home.kind} in {home.path}: {state}"
    if home.kind == "gateway":
        text = f"{home.kind} in {home.path}"
    return Finding(
        f"{text}, {free:.1f} GB free",
        "make room there, or give it another --home" if free < ENOUGH_DISK else "",
    )


def _contents(home: Home) -> Iterator[Finding]:
    name = home.path.name
    if home.kind == "SuperLink":
        database = bytes_of(*home.path.glob(f"{DATABASE}*"))
        yield Finding(
            f"{name}: {database / MB:.1f} MB in {DATABASE}",
            f"`flwr ls` deletes messages of ended runs; then stop the SuperLink, and {CLEAN}"
            if database > LARGE
            else "",
            optional=True,
        )
    logs = bytes_of(*home.logs)
    yield Finding(
        f"{name}: {logs / MB:.1f} MB of logs",
        "restart it with a smaller --log-mib" if logs > LARGE else "",
        optional=True,
    )
    if home.apps:
        apps = bytes_of(*home.apps)
        yield Finding(
            f"{name}: {len(home.apps)} installed apps, {apps / MB:.1f} MB",
            f"stop the {home.kind}, and {CLEAN}" if apps > LARGE else "",
            optional=True,
        )


def _momentum(home: Home) -> Iterator[Finding]:
    before = datetime.now().astimezone() - timedelta(days=DAYS)
    for run in home.momentum:
        used = last_use(run)
        yield Finding(
            f"{home.path.name}: momentum of run {run.name}, {bytes_of(run) / MB:.1f} MB, "
            f"last used {used:%F %R}",
            f"{CLEAN}, if this run will not be resumed" if used < before else "",
            optional=True,
        )


def _memory(processes: list[int]) -> int:
    """Return the resident memory of processes, in bytes; shared pages count in each."""
    pages = 0
    for process in processes:
        with suppress(OSError):  # it has ended
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
