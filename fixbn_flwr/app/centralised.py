"""The yardstick: the same model trained on all the data in one place, without a federation.

It takes as many optimiser steps as one client of the federation does, and in each it sees as many
images as all clients of a round together do in one of theirs, so both have seen equally many in the
end. Batch normalisation stays as it is, momentum is never reset, and the learning rate follows the
same schedule without the calibration's factor.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from fixbn_flwr.app.client.numpy_client import workbench_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.summary import RoundMetrics, round_line, summary_table
from fixbn_flwr.app.runs.writer import RunFolder
from fixbn_flwr.app.training import batches_by_steps, evaluate, seed_of, train
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.tasks import get_task, load_splits

METHOD = "centralised"


def train_centrally(settings: Settings, clients: int) -> Path:
    """Train by a run config as if its ``clients`` had put their data together.

    Returns:
        The run folder; its rounds are those of the federation, which end with an evaluation.

    Raises:
        ConfigError: data, device or model are not there, or the run folder cannot be made.
    """
    settings = replace(settings, freeze_after=1.0)  # nothing is frozen here: there is no T*
    task = get_task(settings.task)
    bench = workbench_of(task, settings)  # fails first where there is no such model
    data, test = load_splits(task, settings.data_path)
    together = settings.clients_per_round(clients)
    if settings.batch_size * together > len(data):
        raise ConfigError(
            f"batch-size = {settings.batch_size}: {together} clients a round take "
            f"{settings.batch_size * together} images a step, and there are {len(data)}; use a "
            "smaller batch-size, fewer clients or a smaller fraction-train."
        )
    folder = RunFolder.create(settings, method=METHOD, clients=clients)
    print(f"Run folder: {folder.path}")
    torch.manual_seed(settings.seed)  # the initial model is the federation's
    bench.model.load_state_dict(task.models[settings.model](settings.norm).state_dict())
    bench.optimizer.state.clear()
    steps = settings.local_steps or settings.local_epochs * -(
        -len(data) // (clients * settings.batch_size)
    )
    for server_round in range(1, settings.num_server_rounds + 1):
        started = time.monotonic()
        random = torch.Generator().manual_seed(seed_of(settings.seed, server_round))
        bench.set_learning_rate(settings.learning_rate_at(server_round))
        batches = batches_by_steps(
            torch.arange(len(data)), settings.batch_size * together, steps, random
        )
        train_loss = train(bench, task, data, batches, random, settings.precision)
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
        print(round_line(metrics, settings.num_server_rounds))
        if folder.append(metrics):
            folder.save_model("best", bench.arrays())
    folder.save_model("final", bench.arrays())
    print(summary_table({METHOD: folder.finish()}))
    print(f"Run folder: {folder.path}")
    return folder.path
