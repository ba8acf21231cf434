"""Centralised training: the same model on all the data in one place, as a baseline.

It takes as many optimizer steps as one client of the federation. Each step uses as many images as
one step of all clients of a round together, so both see equally many images. Batch normalization is
unchanged, momentum is never reset, and the learning rate follows the same schedule without the
calibration factor.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import MetricRecord

from fixbn_flwr.app.batches import batches_by_steps
from fixbn_flwr.app.class_weights import weighted_task
from fixbn_flwr.app.client.image_client import held_out_of, partitions_of, workbench_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.initial_network import check_input, initial_network
from fixbn_flwr.app.round_display import RoundDisplay
from fixbn_flwr.app.runs.creation import create_run_folder
from fixbn_flwr.app.runs.summary import RoundMetrics, summary_table
from fixbn_flwr.app.runs.tracked import log_result, log_round, tracking_of
from fixbn_flwr.app.server.client_validation import validation_metrics
from fixbn_flwr.app.training import evaluate, seed_of, train
from fixbn_flwr.app.workbench import Workbench
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.tasks import Split, Task, check_not_empty, load_splits
from fixbn_flwr.tasks.signature import Signature
from fixbn_flwr.tracking.tracking import check_installed

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
    check_installed(settings.track)
    task = settings.read_task()
    initial = initial_network(task, settings)  # fails before the data is loaded
    bench = workbench_of(task, settings)
    data, test = load_splits(task, settings.data_path)
    check_not_empty(task, data, "training")
    if settings.evaluate_every:
        check_not_empty(task, test, "test")
    images, held_out = _images(settings, data, clients)
    together = settings.clients_per_round(clients)
    if settings.batch_size * together > len(images):
        raise ConfigError(
            f"batch-size = {settings.batch_size}: {together} clients per round use "
            f"{settings.batch_size * together} images per step, more than the {len(images)} "
            "available; use a smaller batch-size, fewer clients or a smaller fraction-train."
        )
    signature = Signature.of(task, test.images if settings.evaluate_every else data.images)
    check_input(initial, settings, signature)
    folder = create_run_folder(settings, method=METHOD, clients=clients, signature=signature)
    print(f"Run folder: {folder.path}")
    bench.model.load_state_dict(initial.state_dict())  # the same as the federation's
    bench.optimizer.state.clear()
    steps = settings.local_steps or settings.local_epochs * -(
        -len(images) // (clients * settings.batch_size)
    )
    trained = weighted_task(task, data, settings.class_weights, bench.device)
    with (
        folder.running(),
        tracking_of(settings, folder) as tracking,
        closing(RoundDisplay(settings)) as display,
    ):
        display.start()
        for server_round in range(1, settings.num_server_rounds + 1):
            started = time.monotonic()
            random = torch.Generator().manual_seed(seed_of(settings.seed, server_round))
            bench.set_learning_rate(settings.learning_rate_at(server_round))
            batches = batches_by_steps(images, settings.batch_size * together, steps, random)
            train_loss = train(bench, trained, data, batches, random, settings.precision)
            evaluated = settings.evaluates(server_round)
            loss, accuracy = evaluate(bench, task, test) if evaluated else (None, None)
            validates = settings.validates(server_round)
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
                **(_validate(bench, task, data, held_out) if validates else {}),
            )
            display.show(metrics)
            log_round(tracking, metrics)
            if folder.append(metrics):
                folder.save_model("best", bench.arrays())
            best = folder.best_round
            if validates and best and settings.is_out_of_patience(server_round, best.round):
                break
        display.close()
        folder.save_model("final", bench.arrays())
        print(summary_table({METHOD: folder.finish()}))
        log_result(tracking, folder)
    return folder.path


def _images(
    settings: Settings, data: Split, clients: int
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Return the images to train on, and those that each client of the federation holds out."""
    if not settings.validation_share:
        return torch.arange(len(data)), {}
    parts = enumerate(partitions_of(settings, data, clients))
    held_out = {client: held_out_of(settings, images, client)[1] for client, images in parts}
    training = np.setdiff1d(np.arange(len(data)), np.concatenate([*held_out.values()]))
    return torch.from_numpy(training), {
        client: torch.from_numpy(own) for client, own in held_out.items() if len(own)
    }


def _validate(
    bench: Workbench, task: Task, data: Split, held_out: dict[int, torch.Tensor]
) -> dict[str, Any]:
    """Return the fields of RoundMetrics about validation, as the clients would report it."""
    results = [evaluate(bench, task, data, own) for own in held_out.values()]
    sizes = [len(own) for own in held_out.values()]
    loss, accuracy = map(float, np.average(results, axis=0, weights=sizes))
    accuracies = [float(own) for _, own in results]
    averages: dict[str, float] = {"loss": loss, "accuracy": accuracy}
    record = MetricRecord({**averages, "accuracies": accuracies, "nodes": list(held_out)})
    return validation_metrics(record, str)
