"""What the scripts of this folder share: one-line errors, private files, Flower's environment."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import typer

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700


class DeployError(Exception):
    """What a user gave cannot work; the message says why, and what to do."""


def command_line(main: Callable[..., None], text: str) -> NoReturn:
    """Run a script's `main` with its command line; its help is the module's own docstring."""
    # \b: paragraphs stay as they are written.
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help="\b\n" + text.replace("\n\n", "\n\n\b\n"))(main)
    try:
        app(standalone_mode=True)
    except DeployError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def new_private_folder(folder: Path) -> None:
    """Make a folder for its owner alone, or take one that is.

    Raises:
        DeployError: others may read the folder, or it cannot be made.
    """
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    except OSError as error:
        raise DeployError(f"{folder} cannot be made ({error}): name another folder.") from error
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise DeployError(f"{folder} is open to other users: chmod 700 {folder}")


def write_new(path: Path, content: bytes, mode: int = PRIVATE_FILE) -> None:
    """Write a file that must not be there yet, with this mode from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def refuse_existing(*paths: Path, remedy: str) -> None:
    """Raise a `DeployError` that names those of the paths that are there already."""
    if there := [str(path) for path in paths if path.exists()]:
        raise DeployError(f"{' and '.join(there)} would be overwritten: {remedy}")


def check_file(path: Path, what: str, remedy: str, *, private: bool = False) -> None:
    """Raise a `DeployError` unless the file can be read, and by nobody else if it is private."""
    if not os.access(path, os.R_OK) or not path.is_file():
        raise DeployError(f"{what} {path} is not there or cannot be read: {remedy}")
    if private and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise DeployError(f"{what} {path} can be read by other users: chmod 600 {path}")


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Raise a `DeployError` unless a server can listen at this address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise DeployError(
                f"nothing can listen at {host}:{port} ({error}): name another --host or --port, "
                "or end what listens there."
            ) from error


def program(name: str) -> str:
    """Return the path of one of Flower's programs, which are beside this Python.

    Raises:
        DeployError: it is not there.
    """
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if found is None:
        raise DeployError(f"{name} is not installed: activate the environment of fixbn-flwr.")
    return found


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's processes, with a home of their own."""
    return os.environ | {
        # Flower starts its other programs by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def write_health(home: Path, address: str, certificate: Path | None) -> None:
    """Leave in a process's home where `check-health` finds it."""
    scheme = "https" if certificate else "http"
    told = {
        "url": f"{scheme}://{address}/health",
        "certificate": str(certificate) if certificate else None,
    }
    (home / "health.json").write_text(json.dumps(told))


def as_node_config(values: Mapping[str, Any]) -> str:
    """Write values as Flower's `--node-config` takes them.

    Raises:
        DeployError: a text holds what Flower cannot read there.
    """
    for key, value in values.items():
        if isinstance(value, str) and any(sign in value for sign in "\"'\\\n"):
            raise DeployError(f"{key} is {value!r}: use no quotes, backslashes or line ends in it.")
    return " ".join(
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()
    )
