"""One run of an experiment, made in this process by the app's own server and client.

It goes over the in-memory grid: the same bits as through `flwr run`, without the minute in which
SuperLink and Ray start. What it leaves is a run folder like any other.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from fixbn_flwr.app import client_app, server_app
from fixbn_flwr.app.centralised import train_centrally
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.reader import read_metrics
from fixbn_flwr.errors import RoundsFailedError
from fixbn_flwr.testing import SerializingGrid
from simulation.experiments.experiment import Run
from simulation.experiments.gradient_runs import measure_run
from simulation.experiments.result_log import Result, mean_of_last_rounds

LOG = "log.txt"


def log_of(folder: Path) -> Path:
    """Where what a run prints goes until it has ended; then it is `log.txt` in its folder."""
    return folder.with_suffix(".log")


def execute(
    run: Run,
    folder: Path,
    machine: Mapping[str, str],
    command: str,
    measure: Mapping[str, Any] | None = None,
) -> Result:
    """Make a run, and return what came out; an unfinished folder of it is made anew.

    Args:
        run: what to do.
        folder: becomes its run folder; what it prints goes into `log.txt` there.
        machine: the run config's keys that belong to this machine: data-dir and device.
        command: what the user typed, for the record.
        measure: see `simulation.experiments.gradient_runs`; None measures nothing more.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = {
        **run.run_config,
        **machine,
        "checkpoint-every": 0,  # a run that was stopped begins anew
        "output-dir": str(folder.parent),
        "run-name": folder.name,
    }
    log = log_of(folder)
    started, failure, state = time.monotonic(), None, 0.0
    with _output_to(log):
        try:
            if run.central:
                train_centrally(Settings.from_run_config(config), run.clients)
            else:
                state = _federate(config, run.clients)
        except RoundsFailedError as error:
            if not error.diverged:  # a mistake or an accident, not a result
                raise
            failure = str(error)
            print(failure)
        seconds = time.monotonic() - started
        extra = measure_run(run, config, folder, measure) if measure and not failure else {}
    os.replace(log, folder / LOG)
    return _result(run, folder, failure, seconds, state, command, extra)


def _federate(config: Mapping[str, Any], clients: int) -> float:
    """Run the app, and return the bytes that a client keeps, the mean over those that do."""
    grid = SerializingGrid(client_app.app, clients, run_config=config)
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(config)
    )
    server_app.app(grid, context)
    kept = [
        sum(record.count_bytes() for record in client.state.values())
        for client in grid.contexts.values()
    ]
    return sum(kept) / max(1, sum(1 for size in kept if size))


def _result(
    run: Run,
    folder: Path,
    failure: str | None,
    seconds: float,
    state: float,
    command: str,
    extra: Mapping[str, Any],
) -> Result:
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    metrics = read_metrics(folder)
    tested = [
        (m.round, m.test_accuracy, m.test_loss)
        for m in metrics
        if m.test_accuracy is not None and m.test_loss is not None
    ]
    messages = max(1, sum(m.clients + m.dropped for m in metrics))
    if not failure and metrics[-1].clients == 0:  # its last model is that of an earlier round
        failure = "no client delivered a usable update in the last round"
    return Result(
        id=run.id,
        kind=run.kind,
        grid=run.grid,
        method=run.method,
        setting=run.setting,
        seed=run.seed,
        clients=run.clients,
        learning_rate=float(run.run_config["learning-rate"]),
        accuracy=None if failure else mean_of_last_rounds(metrics, run.rounds),
        accuracies={number: accuracy for number, accuracy, _ in tested},
        losses={number: loss for number, _, loss in tested},
        failure=failure,
        dropped=sum(m.dropped for m in metrics),
        seconds=round(seconds, 1),
        bytes_sent=sum(m.bytes_sent for m in metrics) / messages,
        bytes_received=sum(m.bytes_received for m in metrics) / messages,
        client_state_bytes=state,
        run_config=run.run_config,
        started=about["started"],
        hardware=about["hardware"],
        versions=about["versions"],
        command=command,
        extra=extra,
    )


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Everything that this process writes goes into a file meanwhile.

    Flower's log holds on to the stream that it once got, so its descriptor goes there too.
    """
    with path.open("w", encoding="utf-8", buffering=1) as file:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
