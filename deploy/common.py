"""Helpers for the scripts of this folder: errors, private files, addresses, Flower's programs."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import typer

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


class DeployError(Exception):
    """An error that the user can fix. The message gives the reason and the remedy."""


def command_line(main: Callable[..., None], text: str) -> NoReturn:
    """Run a script's `main` function with the command line. `text` is its help."""
    # \b keeps the line breaks of a paragraph.
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help="\b\n" + text.replace("\n\n", "\n\n\b\n"))(main)
    try:
        app(standalone_mode=True)
    except DeployError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(
            f"Error: {error}: check that the file or folder exists, that this user may read and "
            "write it, and that the disk has room.",
            file=sys.stderr,
        )
        sys.exit(1)
    sys.exit(0)


def new_private_folder(folder: Path) -> None:
    """Create a folder that only its owner can read, or check an existing one.

    Raises:
        DeployError: If other users can read the folder, or it cannot be created.
    """
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    except OSError as error:
        raise DeployError(
            f"{folder} cannot be created ({error}): choose another folder."
        ) from error
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise DeployError(f"other users can open {folder}: run chmod 700 {folder}")


def lock_home(home: Path, kind: str, remedy: str) -> int:
    """Lock a home until this process has ended, and every program that inherits the lock.

    Args:
        home: The folder.
        kind: What it is the home of, for the error.
        remedy: What to do instead of stopping the other process.

    Returns:
        The descriptor of the lock, which `exec` keeps open.

    Raises:
        DeployError: If another process holds the lock.
    """
    lock = os.open(home / "lock", os.O_WRONLY | os.O_CREAT, PRIVATE_FILE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DeployError(
            f"a {kind} with home {home} is already running: stop it first, or {remedy}"
        ) from error
    except OSError:  # some network file systems do not support locks
        pass
    os.set_inheritable(lock, True)
    os.register_at_fork(after_in_child=partial(os.close, lock))  # helpers outlive this process
    return lock


def write_new(path: Path, content: bytes, mode: int = PRIVATE_FILE) -> None:
    """Create a new file with this mode and write it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def refuse_existing(*paths: Path, remedy: str) -> None:
    """Raise a `DeployError` that lists the paths that exist, if any."""
    if existing := [str(path) for path in paths if path.exists()]:
        raise DeployError(f"{' and '.join(existing)} would be overwritten: {remedy}")


def check_file(path: Path, what: str, remedy: str, *, private: bool = False) -> None:
    """Raise a `DeployError` unless we can read the file and, if private, other users cannot."""
    if not os.access(path, os.R_OK) or not path.is_file():
        raise DeployError(f"{what} {path} does not exist or cannot be read: {remedy}")
    if private and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise DeployError(f"other users can read {what} {path}: run chmod 600 {path}")


def address(host: str, port: int) -> str:
    """Return HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_host(host: str) -> str:
    """Return the name or address at which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def local_address(host: str, port: int) -> str:
    """Return the HOST:PORT at which this machine reaches a server that listens there."""
    return address(local_host(host), port)


def check_port(host: str, port: int) -> None:
    """Raise a `DeployError` unless a server can listen at this address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DeployError(
                f"cannot listen on {host}:{port} ({error}): choose another --host or --port, or "
                "stop the program that uses it."
            ) from error


def program(name: str) -> str:
    """Return the path of one of Flower's programs, which are installed beside this Python.

    Raises:
        DeployError: If it is not installed.
    """
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if found is None:
        raise DeployError(f"{name} is not installed: activate the environment of fixbn-flwr.")
    return found


def write_health(home: Path, address: str, certificate: Path | None) -> None:
    """Write the address of a process to its home, for `check-health`."""
    scheme = "https" if certificate else "http"
    health = {
        "url": f"{scheme}://{address}/health",
        "certificate": str(certificate) if certificate else None,
    }
    (home / "health.json").write_text(json.dumps(health))


def as_node_config(values: Mapping[str, Any]) -> str:
    """Format values for Flower's `--node-config`.

    Raises:
        DeployError: If a string has a character that Flower cannot parse.
    """
    for key, value in values.items():
        if isinstance(value, str) and any(sign in value for sign in "\"'\\\n"):
            raise DeployError(f"{key} is {value!r}: remove quotes, backslashes and line breaks.")
    return " ".join(
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()
    )
