"""Run a federation of the app in worker processes of this machine."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from flwr.clientapp import ClientApp

from fixbn_flwr.app import server_app
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.round_display import log_over_bar
from fixbn_flwr.app.routine_messages import is_routine
from fixbn_flwr.app.shared_data import share_data
from fixbn_flwr.app.workbench import find_device
from fixbn_flwr.engine.local_grid import LocalGrid
from fixbn_flwr.engine.simulation import run_server
from fixbn_flwr.errors import FixBNError, RoundsFailedError


def run_locally(settings: Settings, clients: int, workers: int | None) -> Path:
    """Run a federation; return its run folder.

    Args:
        settings: The run config.
        clients: The number of simulated clients.
        workers: See ``local_grid``.

    Raises:
        FixBNError: If the run fails.
    """
    log = _quiet_log()
    try:
        with local_grid(settings, clients, workers) as grid:
            run_server(server_app.app, grid, settings.as_run_config())
    except FixBNError as error:
        if isinstance(error, RoundsFailedError):  # the message of another one is enough
            print(*[text for text in log.errors if "Traceback" in text][-1:])
        raise
    except Exception:
        print(*log.errors, sep="\n")
        raise
    return settings.run_folder


def _client_app() -> ClientApp:
    from fixbn_flwr.app.client_app import app

    return app


def local_grid(
    settings: Settings,
    clients: int,
    workers: int | None,
    load_app: Callable[[], ClientApp] = _client_app,
) -> LocalGrid:
    """Return a Grid of the app's clients in worker processes, which share the data.

    Args:
        settings: The run config.
        clients: The number of simulated clients.
        workers: The number of clients that train at a time. Default: one per GPU if they train on
            GPUs, else one per core.
        load_app: Returns the ClientApp; called in each worker. Default: the app's own.
    """
    gpus = _gpus(settings)
    return LocalGrid(
        load_app,
        clients,
        workers=workers or len(gpus) or None,
        run_config=settings.as_run_config(),
        prepare=lambda: partial(_prepare_worker, share_data(settings), gpus),
    )


def _gpus(settings: Settings) -> list[str]:
    """Return the GPUs that workers share out, as CUDA_VISIBLE_DEVICES names them.

    None on a CPU, or if the run config names one GPU, which all workers use.
    """
    if settings.device not in ("auto", "cuda") or find_device(settings.device).type != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))


def _prepare_worker(use_data: Callable[[], None], gpus: Sequence[str], number: int) -> None:
    if gpus:  # read when this process first uses CUDA
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    _quiet_log()
    log_over_bar()
    use_data()


class _QuietLog(logging.Filter):
    """Hides Flower's routine output, since the app prints its own lines; keeps errors."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: deque[str] = deque(maxlen=60)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            self.errors.append(record.getMessage())
        return record.levelno == logging.WARNING and not is_routine(record.getMessage())


def _quiet_log() -> _QuietLog:
    quiet = _QuietLog()
    for handler in logging.getLogger("flwr").handlers:
        for other in [f for f in handler.filters if isinstance(f, _QuietLog)]:
            handler.removeFilter(other)
        handler.addFilter(quiet)
    return quiet
