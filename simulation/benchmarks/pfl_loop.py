"""The speed benchmark's job in pfl-research, another simulator of federations.

Model, images, augmentation, batches and steps are those of our app. One process uses all cores:
several processes would need torch.distributed and as many copies of the data. Like the bare loop,
it keeps no momentum from round to round.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from simulation import REPOSITORY


def is_installed() -> bool:
    """Return whether pfl-research is there; it is optional."""
    return find_spec("pfl") is not None


def measure_pfl(
    data: Path, rounds: int, cores: int, *, clients: int, steps: int, batch_size: int
) -> list[float]:
    """Return the seconds of each warm round, measured in a process of its own.

    Args:
        data: The directory with CIFAR-10.
        rounds: The number of warm rounds; one more comes before.
        cores: The number of threads.
        clients: The number of clients; all train in each round.
        steps: The steps of a client in a round.
        batch_size: The images of a step.
    """
    # A program of its own: in a child of multiprocessing, pfl-research has no distributed context.
    job = [str(data), *map(str, (rounds, cores, clients, steps, batch_size))]
    output = subprocess.run(
        [sys.executable, "-m", "simulation.benchmarks.pfl_loop", *job],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
    ).stdout  # fmt: skip
    seconds: list[float] = json.loads(output.splitlines()[-1])
    return seconds[1:]


def _run(
    data: Path, rounds: int, cores: int, clients: int, steps: int, batch_size: int
) -> list[float]:
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    from fixbn_flwr.tasks import get_task, load_splits, normalise

    torch.set_num_threads(cores)
    task = get_task("cifar10")
    assert task.augment is not None
    images, _ = load_splits(task, data)
    network = task.models["resnet20"]("bn").to(memory_format=torch.channels_last)
    random = torch.Generator().manual_seed(0)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def loss(self, inputs: Any, targets: Any) -> Any:
            assert task.augment is not None
            self.train()
            batch = task.augment(normalise(task, inputs), random)
            outputs = self.network(batch.contiguous(memory_format=torch.channels_last))
            return task.loss(outputs, targets)

        def metrics(self, inputs: Any, targets: Any) -> dict[str, Any]:
            return {}  # asked for in the first round, which does not count

    class Clock(TrainingProcessCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.ends = [time.monotonic()]

        def after_central_iteration(self, *_: Any, **__: Any) -> Any:
            from pfl.metrics import Metrics

            self.ends.append(time.monotonic())
            return False, Metrics()

    def dataset(client: int) -> Any:
        first = client * steps * batch_size
        own = slice(first, first + steps * batch_size)
        return Dataset([images.images[own], images.targets[own]])

    model = Network()
    trained = PyTorchModel(  # first: the data set needs to know that it is PyTorch
        model,
        lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-4),
        torch.optim.SGD(model.parameters(), lr=1.0),
    )
    sampler = get_user_sampler("minimize_reuse", list(range(clients)))
    federation = FederatedDataset(dataset, sampler)
    clock = Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds + 1,
            evaluation_frequency=10**9,
            train_cohort_size=clients,
            val_cohort_size=None,
        ),
        SimulatedBackend(federation, federation),
        trained,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=0.05, local_batch_size=batch_size
        ),
        NNEvalHyperParams(local_batch_size=batch_size),
        [clock],
    )
    return [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]


if __name__ == "__main__":
    print(json.dumps(_run(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
