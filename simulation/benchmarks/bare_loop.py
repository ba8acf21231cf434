"""The baseline of the speed benchmark: the same local steps in a bare PyTorch loop.

It computes what our app computes, as fast as PyTorch can: whole batches from one uint8 tensor are
normalised and augmented together, model and SGD optimizer are built once, and there is no
DataLoader.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

WARM_UP = 3  # steps before the clock starts


@dataclass(frozen=True)
class Variant:
    """A way to use the machine's cores and memory.

    Attributes:
        processes: The number of processes that train at the same time.
        threads: The number of threads of each process.
        channels_last: Whether images and weights are in PyTorch's channels-last memory format.
    """

    processes: int
    threads: int
    channels_last: bool

    @property
    def name(self) -> str:
        """The name, such as "2 processes x 1 thread, channels-last"."""
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        memory = "channels-last" if self.channels_last else "contiguous"
        return f"{processes} x {threads}, {memory}"


def variants(cores: int) -> list[Variant]:
    """Return one process with all threads and one process per core, in both memory formats."""
    return [
        Variant(processes, cores // processes, channels_last)
        for processes in dict.fromkeys((1, cores))
        for channels_last in (False, True)
    ]


@dataclass(frozen=True)
class _Job:
    threads: int
    channels_last: bool
    steps: int
    batch_size: int


class BareLoops:
    """Processes, one per core, that train on demand.

    Args:
        cores: The number of processes.
        data_dir: The directory with CIFAR-10.
    """

    def __init__(self, cores: int, data_dir: Path) -> None:
        start = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        for _ in range(cores):
            ours, theirs = start.Pipe()
            process = start.Process(target=_serve, args=(theirs, data_dir), daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(ours)

    def __enter__(self) -> BareLoops:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.terminate()
            process.join()

    def run(self, variant: Variant, steps: int, batch_size: int) -> tuple[float, float]:
        """Take ``steps`` steps in total, divided equally among the variant's processes.

        Returns:
            Images per second, and images per second of processor time.
        """
        job = _Job(variant.threads, variant.channels_last, steps // variant.processes, batch_size)
        pipes = self._pipes[: variant.processes]
        for pipe in pipes:
            pipe.send(job)
        for pipe in pipes:  # wait for the warm-up
            pipe.recv()
        for pipe in pipes:
            pipe.send("go")
        answers: list[tuple[float, float, float]] = [pipe.recv() for pipe in pipes]
        starts, ends, processor = zip(*answers, strict=True)
        images = job.steps * variant.processes * batch_size
        return images / (max(ends) - min(starts)), images / sum(processor)


def _serve(pipe: Connection, data_dir: Path) -> None:
    """Run jobs until the process is terminated."""
    import torch

    from fixbn_flwr.tasks import get_task, load_splits, normalise

    task = get_task("cifar10")
    data, _ = load_splits(task, data_dir)
    assert task.augment is not None
    while True:
        job: _Job = pipe.recv()
        torch.set_num_threads(job.threads)
        torch.manual_seed(0)
        random = torch.Generator().manual_seed(0)
        memory = torch.channels_last if job.channels_last else torch.contiguous_format
        model = task.models["resnet20"]("bn").to(memory_format=memory)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        began = worked = 0.0
        for step in range(WARM_UP + job.steps):
            if step == WARM_UP:
                pipe.send("warm")
                pipe.recv()
                began, worked = time.monotonic(), time.process_time()
            batch = torch.randint(len(data), (job.batch_size,), generator=random)
            images = task.augment(normalise(task, data.images[batch]), random)
            loss = task.loss(model(images.contiguous(memory_format=memory)), data.targets[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        pipe.send((began, time.monotonic(), time.process_time() - worked))
