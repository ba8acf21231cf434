"""Train with FixBN, compare it with plain BN, or train on all the data in one place.

fixbn run                                 # FixBN on scikit-learn's digits, 10 clients
fixbn run task=cifar10 data-dir=~/data    # any key of the run config, see the documentation
fixbn compare                             # FixBN, then plain BN
fixbn centralised                         # the baseline: no federation, as many steps
fixbn run resume=runs/20260101-120000-digits-FixBN      # resume a stopped run
fixbn delete runs/20260101-120000-digits-FixBN
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tomllib
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import typer

from fixbn_flwr.app.centralised import METHOD, train_centrally
from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.local_superlink import SuperLink, local_superlink
from fixbn_flwr.app.runs.figure import draw_curves, figure_title
from fixbn_flwr.app.runs.momentum_files import delete_run
from fixbn_flwr.app.runs.reader import read_config, read_metrics
from fixbn_flwr.app.runs.summary import Summary, summarize, summary_table
from fixbn_flwr.errors import ConfigError, FixBNError

CLIENTS = 10
APP = Path(__file__).resolve().parents[2]  # the directory with pyproject.toml, a Flower app

_DEFAULTS = Settings().as_run_config()
_RECORD = re.compile(
    r"(\x1b\[36m\(ClientAppActor.*?\)\x1b\[0m )?"  # Ray's prefix of a client's line
    r"\x1b\[\d+m(?P<level>[A-Z]+) *\x1b\[0m: *(?P<text>.*)"
)
_HARMLESS = (
    "Since flwr 1.32, default simulated SuperNodes changed",
    "fraction_evaluate is set to 0.0",
    "Manually terminating ClientAppActor",
)

_HELP = __doc__.replace("\n\n", "\n\n\b\n")  # \b: do not rewrap the examples
cli = typer.Typer(help=_HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Run config, for example task=cifar10."),
]
Clients = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of simulated clients, each with one partition. Default: 10; with resume, "
        "the previous number.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of clients trained at a time, one CPU core each. Default: all cores."
    ),
]


@cli.command()
def run(overrides: Overrides = None, clients: Clients = None, workers: Workers = None) -> None:
    """Simulate a federation on this machine."""
    settings = _settings(overrides)
    if settings.resume:
        clients = clients or read_config(Path(settings.resume))["clients"]
    with local_superlink() as link:
        _federate(link, settings, clients or CLIENTS, workers)


@cli.command()
def compare(overrides: Overrides = None, clients: Clients = None, workers: Workers = None) -> None:
    """Simulate a federation with FixBN, then with plain BN, and compare them."""
    fixbn, clients = _new(_settings(overrides)), clients or CLIENTS
    if fixbn.method != "FixBN":
        raise ConfigError(
            f"the method of these settings is {fixbn.method}, not FixBN: compare needs norm=bn and "
            "a freeze-after before the last round."
        )
    plain = _variant(fixbn, {"freeze-after": 1.0, "run-name": f"{fixbn.run_name}-beside-BN"})
    folders: dict[str, Path] = {}
    with local_superlink() as link:
        for settings in (fixbn, plain):
            folders[settings.method] = _federate(link, settings, clients, workers)
    runs = {method: read_metrics(folder) for method, folder in folders.items()}
    summaries: dict[str, Summary] = {
        "FixBN": summarize(runs["FixBN"], fixbn),
        "BN": summarize(runs["BN"], fixbn),
    }
    figure = folders["FixBN"] / "beside-BN.png"
    draw_curves(runs, fixbn.freeze_round, figure, title=figure_title(fixbn, clients))
    print(f"\nFixBN beside plain BN, the same config and seed:\n{summary_table(summaries)}")
    print(f"Figure: {figure}")


@cli.command()
def centralised(overrides: Overrides = None, clients: Clients = None) -> None:
    """Train on all the data in one place: the same model, steps and images per step."""
    train_centrally(_new(_settings(overrides, label=METHOD)), clients or CLIENTS)


@cli.command()
def delete(
    folder: Annotated[Path, typer.Argument(help="The run folder.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete a run, and its clients' momentum files on this machine."""
    path = Path(_absolute("folder", str(folder)))
    if yes or typer.confirm(f"Delete {path} and its clients' momentum files?"):
        for deleted in delete_run(path):
            print(f"Deleted {deleted}")


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: stop all processes
    run_commands(cli)


def run_commands(commands: typer.Typer, words: Sequence[str] | None = None) -> None:
    """Run a command line of this project; print a FixBNError as a message and exit with code 1.

    Args:
        commands: The commands.
        words: The arguments after the program's name. Default: those of this process.
    """
    try:
        commands(words)
    except FixBNError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


def _settings(overrides: list[str] | None, label: str | None = None) -> Settings:
    """Read KEY=VALUE arguments; make paths absolute, and choose the output folder and run name."""
    given: dict[str, Value] = dict(map(_key_and_value, overrides or []))
    for key in ("resume", "data-dir", "state-dir", "output-dir"):
        if given.get(key):
            given[key] = _absolute(key, str(given[key]))
    if resumed := given.get("resume"):
        # The config of the stopped run: only differing keys need be given again.
        before: dict[str, Value] = read_config(Path(str(resumed)))["run_config"]
        return Settings.from_run_config({**before, "may-change": "", **given})
    given["output-dir"] = given.get("output-dir") or _absolute("output-dir", "runs")
    settings = Settings.from_run_config(given)
    chosen: dict[str, Value] = {}
    if not settings.run_name:
        method = (label or settings.method).replace(" ", "-")
        chosen["run-name"] = f"{datetime.now():%Y%m%d-%H%M%S}-{settings.task_name}-{method}"
    return _variant(settings, chosen)


def _new(settings: Settings) -> Settings:
    if settings.resume:
        raise ConfigError("resume: only `fixbn run` can resume a run; remove it here.")
    return settings


def _absolute(key: str, path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise ConfigError(
            f"{key} = {path!r}: {error} Write an absolute path, or ~/ for your own home."
        ) from error


def _variant(settings: Settings, changes: Mapping[str, Value]) -> Settings:
    return Settings.from_run_config({**settings.as_run_config(), **changes})


def _key_and_value(argument: str) -> tuple[str, Value]:
    key, equals, text = argument.partition("=")
    if not equals:
        raise ConfigError(f"{argument!r} is not a setting: write KEY=VALUE, such as task=cifar10.")
    value: Value = text
    with suppress(ValueError):
        value = float(text)  # also .5, which is not TOML
    with suppress(ValueError, RecursionError):  # not TOML, or thousands of digits or brackets
        value = tomllib.loads(f"value = {text}")["value"]
    if isinstance(_DEFAULTS.get(key), str) and not isinstance(value, str):
        value = text  # a name, as in run-name=2026
    return key, value


def _federate(link: SuperLink, settings: Settings, clients: int, workers: int | None) -> Path:
    """Run a federation with `flwr run`; return its run folder."""
    if not (APP / "pyproject.toml").is_file():
        raise ConfigError(
            f"{APP} is not a Flower app (it has no pyproject.toml): run this command in a clone of "
            "the repository, installed with `pip install -e .`."
        )
    cores = workers or len(os.sched_getaffinity(0))
    federation: dict[str, Value] = {
        "num-supernodes": clients,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": cores,
    }
    if torch.cuda.is_available() and settings.device != "cpu":
        # Ray accepts a fraction of a GPU or whole GPUs, but not 1.5.
        federation["client-resources-num-gpus"] = min(1.0, torch.cuda.device_count() / cores)
    changed = {k: v for k, v in settings.as_run_config().items() if v != _DEFAULTS[k]}
    log = _Log()
    failure = link.run(APP, changed, federation, log.show)
    if failure is not None:
        if not any(line.startswith("fixbn_flwr.") for line in log.errors):
            print(*log.errors, sep="\n")  # not a FixBNError, whose message is enough
        raise FixBNError(f"the run failed: {failure}")
    return Path(settings.resume or f"{settings.output_dir}/{settings.run_name}")


class _Log:
    """Prints the app's own lines and warnings of a run's log; keeps the errors."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=60)
        self._in_error = False

    def show(self, line: str) -> None:
        """Print a line, unless it is Flower's routine output or part of an error."""
        record = _RECORD.match(line)
        if record:
            self._in_error = record["level"] == "ERROR"
        if self._in_error:
            self.errors.append(line)
        elif not record or (record["level"] != "INFO" and not record["text"].startswith(_HARMLESS)):
            print(line, flush=True)
