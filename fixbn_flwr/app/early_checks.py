"""Checks of a simulation before anything starts: what the run config and the data already tell.

The server makes most of them again. By then Ray is up, or SuperNodes are connected.
"""

from __future__ import annotations

from contextlib import closing

from fixbn_flwr.app.client.image_client import held_out_of, partitions_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.initial_network import check_input, initial_network
from fixbn_flwr.app.runs.creation import check_run_folder
from fixbn_flwr.app.runs.momentum_files import make_state_dir
from fixbn_flwr.app.server.resumed_run import ResumedRun
from fixbn_flwr.app.workbench import find_device
from fixbn_flwr.tasks import check_not_empty, load_splits
from fixbn_flwr.tasks.signature import Signature


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
    task = settings.read_task()
    network = initial_network(task, settings)  # fails before the data is loaded
    train, test = load_splits(task, settings.data_path)
    check_not_empty(task, train, "training")
    if settings.evaluate_every:
        check_not_empty(task, test, "test")
    check_input(network, settings, Signature.of(task, train.images))
    parts = enumerate(partitions_of(settings, train, clients))
    settings.check_partitions([len(held_out_of(settings, part, own)[0]) for own, part in parts])
    make_state_dir(settings)
