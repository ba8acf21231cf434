"""Checks of a simulation before anything starts: what the run config and the data already tell.

The server makes most of them again. By then Ray is up, or SuperNodes are connected.
"""

from __future__ import annotations

from contextlib import closing

from fixbn_flwr.app.client.image_client import held_out_of, partitions_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.creation import check_run_folder
from fixbn_flwr.app.runs.momentum_files import make_state_dir
from fixbn_flwr.app.server.resumed_run import ResumedRun
from fixbn_flwr.app.workbench import find_device
from fixbn_flwr.tasks import get_task, load_splits


def check_before_start(settings: Settings, clients: int) -> None:
    """Check that a simulation can start on this machine. Nothing is written but ``state-dir``.

    Args:
        settings: The run config.
        clients: The number of simulated clients.

    Raises:
        FixBNError: If it cannot start: its run folder cannot be created or resumed, there is no
            such device or data, or the clients do not get enough images.
    """
    if settings.resume:
        with closing(ResumedRun.find(settings)) as resumed:
            resumed.check_clients(clients)
    else:
        check_run_folder(settings)
    find_device(settings.device)
    task = get_task(settings.task)
    task.models[settings.model](settings.norm)  # fails before the data is loaded
    train, _ = load_splits(task, settings.data_path)
    parts = enumerate(partitions_of(settings, train, clients))
    settings.check_partitions([len(held_out_of(settings, part, own)[0]) for own, part in parts])
    make_state_dir(settings)
