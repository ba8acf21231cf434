"""Put a report's page together, and write it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from fixbn_flwr.app.report.charts import (
    APART,
    COST,
    DROPPED,
    LEARNING,
    draw_charts,
    score_chart,
)
from fixbn_flwr.app.report.clients import (
    ClientResult,
    client_results,
    client_table,
    draw_clients,
)
from fixbn_flwr.app.report.confusion import confusion_of, worst_confusions
from fixbn_flwr.app.report.heat_maps import draw_confusion, draw_layers, draw_validations
from fixbn_flwr.app.report.picture import Picture
from fixbn_flwr.app.report.reported_run import ReportedRun, read_runs
from fixbn_flwr.app.report.tables import Table, config_differences, overview
from fixbn_flwr.app.report.tested_model import TestedModel, tested_model
from fixbn_flwr.app.report.validation import validation_charts, validation_table
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.persistence.atomic_files import write_atomically

_TEMPLATE = "page.html"
_NOT_TESTED = "The models were not tested (--no-models)."


@dataclass(frozen=True)
class Part:
    """What a section of the page says about one run.

    Attributes:
        label: The run.
        missing: Why there is nothing to show; empty if there is.
        which: Which model was tested.
        picture: An image, or None.
        table: A table, or None.
    """

    label: str
    missing: str = ""
    which: str = ""
    picture: Picture | None = None
    table: Table | None = None


def write_report(paths: Sequence[Path], output: Path, *, test_models: bool = True) -> None:
    """Write a report of runs, one HTML page that needs no other file.

    Args:
        paths: The run folders.
        output: The file. An existing one is replaced.
        test_models: Whether to test the runs' models where the data set is on this machine.
            Default: True.

    Raises:
        ConfigError: If a path is not a run folder, or the file cannot be written.
    """
    output = output.expanduser().absolute()
    runs = read_runs(paths)
    _check(output)
    page = render(runs, test_models=test_models)
    try:
        write_atomically(output, page.encode())
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be written ({error}): make room on its disk, or name another file "
            "with --output."
        ) from error


def _check(output: Path) -> None:
    """Check that the file can be written, before any work."""
    if output.is_dir():
        raise ConfigError(f"{output} is a folder: name a file with --output.")
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise ConfigError(
            f"{output} cannot be written: {output.parent} is not a writable folder; create it, or "
            "name another file with --output."
        )


def render(runs: Sequence[ReportedRun], *, test_models: bool) -> str:
    """Return the page.

    Args:
        runs: The runs.
        test_models: Whether to test their models.
    """
    import matplotlib as mpl
    from jinja2 import Environment, StrictUndefined

    results: dict[str, list[ClientResult]] = {}
    clients, confusions = [], []
    with mpl.rc_context({"font.size": 11}):
        for run in runs:
            of_clients, of_classes = _tested(run, results, test_models=test_models)
            clients.append(of_clients)
            confusions.append(of_classes)
        content = {
            "runs": runs,
            "overview": overview(runs),
            "score": draw_charts(runs, [score_chart(runs)], wide=True),
            "learning": draw_charts(runs, LEARNING),
            "validation": draw_charts(runs, validation_charts(runs)),
            "validations": [_validation(run) for run in runs],
            "apart": draw_charts(runs, APART),
            "layers": [_layers(run) for run in runs],
            "client_pictures": draw_clients(runs, results) if results else [],
            "clients": clients,
            "confusions": confusions,
            "cost": draw_charts(runs, COST),
            "dropped": draw_charts(runs, [DROPPED])
            if any(m.dropped for run in runs for m in run.rounds)
            else [],
            "differences": config_differences(runs),
            "version": version("fixbn-flwr"),
        }
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(template).render(content)


def _layers(run: ReportedRun) -> Part:
    picture = draw_layers(run)
    missing = "" if picture else "No round of this run has measured it."
    return Part(run.label, missing, picture=picture)


def _validation(run: ReportedRun) -> Part:
    picture = draw_validations(run)
    missing = "" if picture else "No client has held out images (validation-share)."
    return Part(run.label, missing, picture=picture, table=validation_table(run))


def _tested(
    run: ReportedRun, results: dict[str, list[ClientResult]], *, test_models: bool
) -> tuple[Part, Part]:
    """Test a run's model; return what to say about its clients and its classes."""
    if not test_models:
        missing = Part(run.label, _NOT_TESTED)
        return missing, missing
    try:
        model = tested_model(run)
    except ConfigError as error:
        missing = Part(run.label, f"Not available on this machine: {error}")
        return missing, missing
    print(f"Testing the {model.which} model of {run.label}", flush=True)
    if not len(model.test):
        no_tests = Part(run.label, "There are no test images on this machine.")
        return _clients(run, model, results), no_tests
    confusion = confusion_of(model)
    of_classes = Part(
        run.label,
        which=model.which,
        picture=draw_confusion(confusion, run.label),
        table=worst_confusions(confusion),
    )
    return _clients(run, model, results), of_classes


def _clients(run: ReportedRun, model: TestedModel, results: dict[str, list[ClientResult]]) -> Part:
    try:
        own = results[run.label] = client_results(run, model)
    except ConfigError as error:
        return Part(run.label, str(error))
    return Part(run.label, which=model.which, table=client_table(own, run.score))
