"""Execute one run of an experiment in this process.

Its clients run in worker processes, as with `fixbn run`. The run has a run folder like any other.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fixbn_flwr.app.centralised import train_centrally
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.local_run import local_grid
from fixbn_flwr.app.runs.reader import read_metrics
from fixbn_flwr.app.server_app import server_app_of
from fixbn_flwr.engine.simulation import run_server
from fixbn_flwr.errors import ConfigError, RoundsFailedError
from simulation.experiments.gradient_runs import is_measured, kept_models, measure_run
from simulation.experiments.planned_run import Run
from simulation.experiments.result_log import LAST, Result, mean_of_last_rounds
from simulation.peers import Peer, client_app, peer_of
from simulation.peers.personal import read_own_accuracies

LOG = "log.txt"


def log_of(folder: Path) -> Path:
    """Return the log of an unfinished run. A completed run has `log.txt` in its folder."""
    return folder.with_suffix(".log")


def execute(
    run: Run,
    folder: Path,
    machine: Mapping[str, str],
    command: str,
    measure: Mapping[str, Any] | None = None,
) -> Result:
    """Execute a run and return its result. An unfinished run folder is replaced.

    Args:
        run: The run.
        folder: The run folder, which also gets the run's output, `log.txt`.
        machine: The run config's keys that depend on the machine: data-dir and device.
        command: The command of the user, for the record.
        measure: The table `measure` of the experiment, see
            `simulation.experiments.gradient_runs`. Default: no further measurements.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    measured = measure if is_measured(run, measure) else None
    config = {
        **run.run_config,
        **machine,
        "checkpoint-every": 0,  # an interrupted run starts again
        **(kept_models(run, measured) if measured else {}),
        "output-dir": str(folder.parent),
        "run-name": folder.name,
    }
    log = log_of(folder)
    started, failure, state = time.monotonic(), None, 0.0
    with _output_to(log):
        try:
            settings = Settings.from_run_config(config)
            if run.central:
                train_centrally(settings, run.clients)
            else:
                state = _federate(settings, run.clients)
        except RoundsFailedError as error:
            if not error.diverged:  # an error, not a result
                raise
            failure = str(error)
            print(failure)
        seconds = time.monotonic() - started
        extra = measure_run(run, config, folder, measured) if measured and not failure else {}
    os.replace(log, folder / LOG)
    return _result(run, folder, failure, seconds, state, command, extra)


def _federate(settings: Settings, clients: int) -> float:
    """Run the app, and return the mean size of a client's state, over clients that have one.

    As many clients train at a time as this process may use threads.
    """
    peer = peer_of(settings.task)
    if settings.validation_share and peer != Peer():
        raise ConfigError(
            f"validation-share = {settings.validation_share}: the clients of a peer do not validate"
            f" as the app's do; leave it out for task {settings.task}."
        )
    load_app = partial(client_app, settings.task)
    with local_grid(settings, clients, torch.get_num_threads(), load_app) as grid:
        run_server(server_app_of(peer.recorder), grid, settings.as_run_config())
        kept = [sum(record.count_bytes() for record in state.values()) for state in grid.states()]
    return sum(kept) / max(1, len(kept))


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
    own = zip(tested, read_own_accuracies(folder), strict=False)  # few methods have them
    last_own = [accuracy for (number, *_), accuracy in own if number >= LAST * run.rounds]
    if not failure and metrics[-1].clients == 0:  # the last model is that of an earlier round
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
        freeze_round=about["freeze_round"],
        freeze_reason=about.get("freeze_reason", ""),
        own_accuracy=sum(last_own) / len(last_own) if last_own and not failure else None,
        retries=max((m.retries for m in metrics), default=0),
    )


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Redirect the output of this process to a file.

    Flower's logger keeps its own reference to stderr, so the file descriptor is redirected, too.
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
