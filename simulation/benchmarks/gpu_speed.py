"""Seconds a round on a GPU: the engine with and without CUDA graphs, bare loops, and Ray.

The images are random, of CIFAR-10's shape: a GPU machine need not have the data. Each row also runs
on a CPU, which is how the tests run it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fixbn_flwr.app.batches import batches_by_epochs, batches_by_steps
from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.cuda_graphs import replays
from fixbn_flwr.app.training import train
from fixbn_flwr.app.workbench import workbench
from fixbn_flwr.tasks import get_task, load_splits
from simulation.benchmarks.machine import progress
from simulation.benchmarks.measured_run import our_app

TASKS = "simulation.benchmarks.random_images"
BARE, BARE_GRAPHS = "bare eager loop", "bare graph loop"
ENGINE, ENGINE_EAGER, RAY = "engine", "engine without graphs", "flwr run"
PER_GPU = 4  # clients that share a GPU under Ray


@dataclass(frozen=True)
class Job:
    """What the clients do in a round.

    Attributes:
        model: The network.
        clients: The number of clients, which all train.
        images: The images of a client.
        batch_size: The images of a step.
        steps: The steps of a client; 0 for epochs.
        epochs: The passes of a client over its images, if there are no steps.
    """

    model: str
    clients: int
    images: int
    batch_size: int
    steps: int = 0
    epochs: int = 0

    @property
    def name(self) -> str:
        """What the job is, in a line."""
        work = f"{self.steps} steps" if self.steps else f"{self.epochs} epochs"
        return f"{self.model}, {self.clients} clients x {work} of {self.batch_size}"

    @property
    def task(self) -> str:
        """The task, which has as many images as the clients together."""
        return f"{TASKS}:IMAGES_{self.clients * self.images}"

    @property
    def images_per_round(self) -> int:
        """The images that all clients train on in a round."""
        seen = self.steps * self.batch_size if self.steps else self.epochs * self.images
        return self.clients * seen

    def run_config(self, device: str, *, cuda_graphs: bool) -> dict[str, Value]:
        """Return the run config of our app."""
        return {
            "task": self.task,
            "model": self.model,
            "partition": "iid",
            "local-steps": self.steps,
            "local-epochs": self.epochs,
            "batch-size": self.batch_size,
            "device": device,
            "cuda-graphs": cuda_graphs,
            "checkpoint-every": 0,
        }


JOBS = (
    Job("resnet20", clients=10, images=5_000, batch_size=20, steps=1),
    Job("resnet20", clients=10, images=5_000, batch_size=20, steps=5),
    Job("resnet20", clients=10, images=5_000, batch_size=20, steps=100),
    Job("resnet18", clients=100, images=50, batch_size=50, epochs=5),
)


def measure_gpu(
    jobs: tuple[Job, ...], device: str, *, rounds: int, with_ray: bool = True
) -> dict[str, dict[str, Any]]:
    """Measure every row of every job; return them by job and row.

    Args:
        jobs: The jobs.
        device: The device, as in the run config.
        rounds: The number of warm rounds.
        with_ray: Whether to run Flower's simulation too. Default: yes.
    """
    measured: dict[str, dict[str, Any]] = {}
    for job in jobs:
        rows = measured.setdefault(job.name, {})
        for name, seconds in _rows(job, device, rounds, with_ray=with_ray):
            rows[name] = {
                "seconds": round(seconds, 4),
                "images_per_second": round(job.images_per_round / seconds),
            }
            progress(f"{job.name}, {name}: {seconds:.3f} s")
    return measured


def gpu_table(measured: dict[str, dict[str, Any]]) -> str:
    """Return the seconds of a round and images per second, and the ratio to the bare eager loop."""
    lines = []
    for job, rows in measured.items():
        lines.append(f"{job:<40}{'seconds':>10}{'images/s':>12}{'ratio':>8}")
        for name, row in rows.items():
            ratio = rows[BARE]["seconds"] / row["seconds"]
            lines.append(
                f"  {name:<38}{row['seconds']:>10.3f}{row['images_per_second']:>12}{ratio:>7.2f}x"
            )
    return "\n".join(lines)


def _rows(job: Job, device: str, rounds: int, *, with_ray: bool) -> Iterator[tuple[str, float]]:
    yield BARE, bare_loop(job, device, rounds, cuda_graphs=False)
    yield BARE_GRAPHS, bare_loop(job, device, rounds, cuda_graphs=True)
    with tempfile.TemporaryDirectory() as scratch:
        size = {"rounds": rounds, "clients": job.clients}
        for name, graphs in ((ENGINE, True), (ENGINE_EAGER, False)):
            config = job.run_config(device, cuda_graphs=graphs)
            yield name, our_app("local", Path(scratch) / str(graphs), config, **size).seconds
        if with_ray:
            config = job.run_config(device, cuda_graphs=False)
            size["rounds"] = min(rounds, 2)  # it is slow with many clients
            run = our_app("ray", Path(scratch) / "ray", config, workers=PER_GPU, **size)
            yield RAY, run.seconds


def bare_loop(job: Job, device: str, rounds: int, *, cuda_graphs: bool) -> float:
    """Return the seconds of a round's steps alone: one model, no clients' states, no messages."""
    task = get_task(job.task)
    bench = workbench(task, job.model, "bn", 0.9, 1e-4, device, cuda_graphs)
    bench.set_learning_rate(0.05)
    data, _ = load_splits(task)
    seconds = []
    for server_round in range(rounds + 1):
        started = time.monotonic()
        for client in range(job.clients):
            random = torch.Generator().manual_seed(client + job.clients * server_round)
            own = torch.arange(job.images * client, job.images * (client + 1))
            batches = (
                batches_by_steps(own, job.batch_size, job.steps, random)
                if job.steps
                else batches_by_epochs(own, job.batch_size, job.epochs, random)
            )
            # Its end waits for the device.
            train(bench, task, data, batches, random, around=replays(bench, None))
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds[1:])
