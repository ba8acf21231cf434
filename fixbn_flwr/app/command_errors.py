"""Run a command line, and turn its errors into messages without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version

import typer

from fixbn_flwr.errors import ConfigError, FixBNError

# Packages of the extra "app", as Python names them.
APP_PACKAGES = {
    "cloudpickle", "cryptography", "jinja2", "matplotlib", "PIL", "pyarrow", "rich", "sklearn",
    "torchvision",
}  # fmt: skip


def run_commands(commands: typer.Typer, words: Sequence[str] | None = None) -> None:
    """Run a command line of this project; print a FixBNError as a message and exit with code 1.

    Args:
        commands: The commands.
        words: The arguments after the program's name. Default: those of this process.
    """
    try:
        if "doctor" not in (sys.argv[1:] if words is None else words)[:1]:  # it says more
            check_flower(version("flwr"))
        commands(words)
    except FixBNError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name not in APP_PACKAGES:
            raise
        print(
            f"Error: {error.name} is not installed: `pip install fixbn-flwr` installs the library "
            'alone. Install the app with `pip install "fixbn-flwr[app]"`.',
            file=sys.stderr,
        )
        sys.exit(1)


def check_flower(installed: str) -> None:
    """Check that a version of Flower can run the app.

    Raises:
        ConfigError: If it is too old.
    """
    if tuple(int(part) for part in installed.split(".")[:2]) < (1, 41):
        raise ConfigError(
            f"flwr {installed} is installed, and the app needs 1.41 or newer; only the library "
            'works with older ones. Update it with `pip install "fixbn-flwr[app]"`.'
        )
