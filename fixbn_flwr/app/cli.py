"""Train with FixBN, compare it with plain BN, or train on all the data in one place.

fixbn run                                 # FixBN on scikit-learn's digits, 10 clients
fixbn run --engine ray                    # the same through `flwr run`
fixbn run task=cifar10 data-dir=~/data    # any key of the run config, see the documentation
fixbn compare                             # FixBN, then plain BN
fixbn centralised                         # the baseline: no federation, as many steps
fixbn run resume=runs/20260101-120000-3f9a-digits-FixBN # resume a stopped run
fixbn list                                              # the runs in ./runs
fixbn report runs/20260101-120000-3f9a-digits-FixBN     # one HTML page, of several runs too
fixbn predict runs/20260101-120000-3f9a-digits-FixBN image.png
fixbn export runs/20260101-120000-3f9a-digits-FixBN --format onnx
fixbn delete runs/20260101-120000-3f9a-digits-FixBN
fixbn supervise runs/hospitals task=cifar10             # real machines: resumes by itself
fixbn doctor                              # what this machine has, and what to do about problems
fixbn clean                               # delete what real machines keep of old runs
"""

from __future__ import annotations

import io
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from fixbn_flwr.app.command_errors import run_commands
from fixbn_flwr.app.doctor.commands import doctor
from fixbn_flwr.app.homes.commands import clean
from fixbn_flwr.app.inference.commands import export, predict
from fixbn_flwr.app.report.commands import report
from fixbn_flwr.app.runs.commands import delete, list_runs
from fixbn_flwr.app.supervision.commands import supervise
from fixbn_flwr.engine.fork_server import start_fork_server

# Everything else is imported where it is used: the help must not wait for torch, and the workers'
# imports start before this process's own.
if TYPE_CHECKING:
    from fixbn_flwr.app.config.settings import Settings

    Run = Callable[[Settings, int, int | None], Path]

CLIENTS = 10
# What workers import beforehand. The first step of an optimizer imports torch._dynamo.
CLIENT_MODULES = (
    "fixbn_flwr.app.client_app", "fixbn_flwr.app.client.image_client", "torch._dynamo"
)  # fmt: skip


class Engine(StrEnum):
    """What runs the clients of a simulation."""

    LOCAL = "local"
    RAY = "ray"


_HELP = __doc__.replace("\n\n", "\n\n\b\n")  # \b: do not rewrap the examples
cli = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode=None)


class _WithKeys(TyperCommand):
    """A command whose help lists the keys of the run config."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from fixbn_flwr.app.config.key_table import key_list

        with formatter.section("Keys"):
            formatter.write_dl(key_list())


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Run config, for example num-server-rounds=5."),
]
Clients = Annotated[
    int | None,
    typer.Option(min=1, help="Number of simulated clients, each with one partition. Default: 10."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of clients trained at a time, one CPU core each. Default: one per core; for "
        "run and compare one per GPU, if the machine has GPUs.",
    ),
]
EngineOption = Annotated[
    Engine,
    typer.Option(help="local: processes of this machine; ray: `flwr run`."),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"fixbn-flwr {version('fixbn-flwr')}")
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """The options of the program itself."""


@cli.command(cls=_WithKeys)
def run(
    overrides: Overrides = None,
    clients: Clients = None,
    workers: Workers = None,
    engine: EngineOption = Engine.LOCAL,
) -> None:
    """Simulate a federation on this machine. A resumed run keeps its number of clients."""
    _start_imports(engine)
    from fixbn_flwr.app.early_checks import check_before_start
    from fixbn_flwr.app.interruption import resume_hint
    from fixbn_flwr.app.overrides import read_settings
    from fixbn_flwr.app.runs.reader import read_config

    settings = read_settings(overrides)
    if settings.resume:
        clients = clients or read_config(Path(settings.resume))["clients"]
    clients = clients or CLIENTS
    check_before_start(settings, clients)
    with _running(engine) as federate, resume_hint(settings):
        federate(settings, clients, workers)


@cli.command(cls=_WithKeys)
def compare(
    overrides: Overrides = None,
    clients: Clients = None,
    workers: Workers = None,
    engine: EngineOption = Engine.LOCAL,
) -> None:
    """Simulate a federation with FixBN, then with plain BN, and compare them."""
    _start_imports(engine)
    from fixbn_flwr.app.comparison import beside_bn, compare_with_bn
    from fixbn_flwr.app.early_checks import check_before_start
    from fixbn_flwr.app.overrides import check_new, read_settings

    settings = read_settings(overrides)
    check_new(settings)
    both, clients = beside_bn(settings), clients or CLIENTS
    for one in both:
        check_before_start(one, clients)
    with _running(engine) as federate:
        compare_with_bn(both, clients, lambda one: federate(one, clients, workers))


@cli.command()
def simulate(
    app: Annotated[Path, typer.Argument(help="The directory of a Flower app.")],
    overrides: Overrides = None,
    clients: Clients = None,
    workers: Workers = None,
) -> None:
    """Simulate any Flower app in worker processes of this machine, without Ray."""
    start_fork_server()
    from fixbn_flwr.app.app_folder import AppFolder

    AppFolder(app).run(overrides or [], clients or CLIENTS, workers)


@cli.command()
def new(
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    task: Annotated[
        Path | None,
        typer.Option(help="A Python file that defines TASK. Default: a file to start from."),
    ] = None,
) -> None:
    """Write a Flower app around your own task, ready for `flwr run`."""
    from fixbn_flwr.app.flower_app import new_app

    written = new_app(folder.expanduser().absolute(), task)
    quoted = shlex.quote(str(folder))
    print(
        f"Your task: {written}\n"
        f"Run it:    fixbn simulate {quoted}\n"
        "or:        export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1\n"
        f"           flwr run {quoted} --stream --federation-config "
        f'"num-supernodes={CLIENTS} client-resources-num-cpus=1"'
    )


@cli.command()
def centralised(overrides: Overrides = None, clients: Clients = None) -> None:
    """Train on all the data in one place: the same model, steps and images per step."""
    from fixbn_flwr.app.centralised import METHOD, train_centrally
    from fixbn_flwr.app.overrides import check_new, read_settings

    settings = read_settings(overrides, label=METHOD)
    check_new(settings)
    train_centrally(settings, clients or CLIENTS)


cli.command("list")(list_runs)
for command in (report, predict, export, delete, doctor, supervise, clean):
    cli.command()(command)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: stop all processes
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # each round at once, in a log file too
    run_commands(cli)


def _start_imports(engine: Engine) -> None:
    """Let the workers import while this process does."""
    if engine is Engine.LOCAL:
        start_fork_server(CLIENT_MODULES)


@contextmanager
def _running(engine: Engine) -> Iterator[Run]:
    """Yield what runs a federation with this engine; end the engine's processes afterwards."""
    if engine is Engine.LOCAL:
        from fixbn_flwr.app.local_run import run_locally

        yield run_locally
    else:
        from fixbn_flwr.app.local_superlink import local_superlink
        from fixbn_flwr.app.ray_run import run_with_ray
        from fixbn_flwr.tasks import forget_splits

        forget_splits()  # Ray's processes load their own
        with local_superlink() as link:
            yield partial(run_with_ray, link)
