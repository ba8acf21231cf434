"""Centralized training: the same model on all the data in one place, as a baseline.

It takes as many optimizer steps as one client of the federation. Each step uses as many images as
one step of all clients of a round together, so both see equally many images. Batch normalization is
unchanged, momentum is never reset, and the learning rate follows the same schedule without the
calibration factor.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from fixbn_flwr.app.batches import batches_by_steps
from fixbn_flwr.app.class_weights import weighted_task
from fixbn_flwr.app.client.image_client import workbench_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.initial_network import check_input, initial_network
from fixbn_flwr.app.runs.creation import create_run_folder
from fixbn_flwr.app.runs.summary import RoundMetrics, round_line, summary_table
from fixbn_flwr.app.training import evaluate, seed_of, train
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.tasks import check_not_empty, load_splits
from fixbn_flwr.tasks.signature import Signature

METHOD = "centralised"


def train_centrally(settings: Settings, clients: int) -> Path:
    """Train by a run config on the data of all clients together.

    Args:
        settings: The run config.
        clients: The number of clients of the federation to compare with.

    Returns:
        The run folder. It has as many rounds as the federation's, unless ``patience`` ends it.

    Raises:
        ConfigError: If data, device or model do not exist, or the folder cannot be created.
    """
    settings = replace(settings, freeze_after=1.0)  # nothing is frozen
    task = settings.read_task()
    initial = initial_network(task, settings)  # fails before the data is loaded
    bench = workbench_of(task, settings)
    data, test = load_splits(task, settings.data_path)
    check_not_empty(task, data, "training")
    check_not_empty(task, test, "test")
    together = settings.clients_per_round(clients)
    if settings.batch_size * together > len(data):
        raise ConfigError(
            f"batch-size = {settings.batch_size}: {together} clients per round use "
            f"{settings.batch_size * together} images per step, more than the {len(data)} "
            "available; use a smaller batch-size, fewer clients or a smaller fraction-train."
        )
    signature = Signature.of(task, test.images)
    check_input(initial, settings, signature)
    folder = create_run_folder(settings, method=METHOD, clients=clients, signature=signature)
    print(f"Run folder: {folder.path}")
    bench.model.load_state_dict(initial.state_dict())  # the same as the federation's
    bench.optimizer.state.clear()
    steps = settings.local_steps or settings.local_epochs * -(
        -len(data) // (clients * settings.batch_size)
    )
    trained = weighted_task(task, data, settings.class_weights, bench.device)
    with folder.running():
        for server_round in range(1, settings.num_server_rounds + 1):
            started = time.monotonic()
            random = torch.Generator().manual_seed(seed_of(settings.seed, server_round))
            bench.set_learning_rate(settings.learning_rate_at(server_round))
            batches = batches_by_steps(
                torch.arange(len(data)), settings.batch_size * together, steps, random
            )
            train_loss = train(bench, trained, data, batches, random, settings.precision)
            evaluated = settings.evaluates(server_round)
            loss, accuracy = evaluate(bench, task, test) if evaluated else (None, None)
            metrics = RoundMetrics(
                round=server_round,
                phase=Phase.EXPLORATION,
                learning_rate=settings.learning_rate_at(server_round),
                train_loss=train_loss,
                test_loss=loss,
                test_accuracy=accuracy,
                bytes_sent=0,
                bytes_received=0,
                seconds=time.monotonic() - started,
                clients=together,
                dropped=0,
            )
            print(round_line(metrics, settings))
            if folder.append(metrics):
                folder.save_model("best", bench.arrays())
            best = folder.best_round
            if evaluated and best and settings.is_out_of_patience(server_round, best.round):
                break
        folder.save_model("final", bench.arrays())
        print(summary_table({METHOD: folder.finish()}))
    return folder.path
