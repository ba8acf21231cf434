"""The command line: train with FixBN, beside plain BN, or on all the data in one place.

fixbn run                                 # FixBN on scikit-learn's digits, 10 clients
fixbn run task=cifar10 data-dir=~/data    # any key of the run config, see the README
fixbn compare                             # the same, and plain BN beside it
fixbn centralised                         # the yardstick: no federation, as many steps
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import typer

from fixbn_flwr.app.centralised import train_centrally
from fixbn_flwr.app.config import Settings
from fixbn_flwr.app.figure import draw_curves, figure_title
from fixbn_flwr.app.run_folder import read_metrics
from fixbn_flwr.app.summary import Summary, summarize, summary_table
from fixbn_flwr.app.superlink import SuperLink, local_superlink
from fixbn_flwr.app.validation import Value
from fixbn_flwr.errors import ConfigError, FixBNError

APP = Path(__file__).resolve().parents[2]  # the directory with pyproject.toml, a Flower app

cli = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Run config, such as task=cifar10."),
]
Clients = Annotated[int, typer.Option(min=1, help="Simulated clients, one partition each.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Clients trained at a time, one CPU core each; default: all cores."),
]


@cli.command()
def run(overrides: Overrides = None, clients: Clients = 10, workers: Workers = None) -> None:
    """Simulate a federation on this machine."""
    settings = _settings(overrides)
    with local_superlink() as link:
        _federate(link, settings, clients, workers)


@cli.command()
def compare(overrides: Overrides = None, clients: Clients = 10, workers: Workers = None) -> None:
    """Simulate a federation with FixBN, then the same with plain BN, and show both."""
    fixbn = _settings(overrides)
    if fixbn.method != "FixBN":
        raise ConfigError(
            f"these settings are {fixbn.method} already: compare needs norm=bn and a freeze-after "
            "before the last round."
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
def centralised(overrides: Overrides = None, clients: Clients = 10) -> None:
    """Train on all the data in one place: the same model, steps and images a step."""
    train_centrally(_settings(overrides), clients)


def main() -> None:
    """Run the command line; an error of ours is a message and exit code 1, not a traceback."""
    try:
        cli()
    except FixBNError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


def _settings(overrides: list[str] | None) -> Settings:
    """Read KEY=VALUE arguments and settle what the app would choose later: folder and name."""
    settings = Settings.from_run_config(dict(map(_key_and_value, overrides or [])))
    directory = Path(settings.output_dir or "runs").expanduser().absolute()
    chosen: dict[str, Value] = {"output-dir": str(directory)}
    if settings.data_dir:
        chosen["data-dir"] = str(Path(settings.data_dir).expanduser().absolute())
    if not settings.run_name:
        method = settings.method.replace(" ", "-")
        chosen["run-name"] = f"{datetime.now():%Y%m%d-%H%M%S}-{settings.task}-{method}"
    return _variant(settings, chosen)


def _variant(settings: Settings, changes: Mapping[str, Value]) -> Settings:
    return Settings.from_run_config({**settings.as_run_config(), **changes})


def _key_and_value(argument: str) -> tuple[str, Value]:
    key, equals, text = argument.partition("=")
    if not equals:
        raise ConfigError(f"{argument!r} is not a setting: write KEY=VALUE, such as task=cifar10.")
    try:
        value: Value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a word, as in task=cifar10
    return key, value


def _federate(link: SuperLink, settings: Settings, clients: int, workers: int | None) -> Path:
    """Run a federation through `flwr run`; return its run folder."""
    if not (APP / "pyproject.toml").is_file():
        raise ConfigError(
            f"{APP} is no Flower app (it has no pyproject.toml): run this command from a clone of "
            "the repository, installed with `pip install -e .`."
        )
    cores = workers or torch.get_num_threads()
    federation: dict[str, Value] = {
        "num-supernodes": clients,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": cores,
    }
    if torch.cuda.is_available() and settings.device != "cpu":
        federation["client-resources-num-gpus"] = torch.cuda.device_count() / cores
    defaults = Settings().as_run_config()
    changed = {k: v for k, v in settings.as_run_config().items() if v != defaults[k]}
    failure = link.run(APP, changed, federation, _show)
    if failure is not None:
        raise FixBNError(f"the run did not complete ({failure}).")
    return Path(settings.output_dir) / settings.run_name


def _show(line: str) -> None:
    """Print a line of a run's log, but not Flower's INFO lines: the app prints a line a round."""
    if "INFO " not in line[:12]:
        print(line, flush=True)
