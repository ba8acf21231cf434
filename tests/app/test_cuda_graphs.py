"""Captured steps: the bits of plain steps, whatever a capture does before.

On a CPU a "capture" runs the step as often as CUDA's warm-up does, and a "replay" runs it once.
The last tests need a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fixbn_flwr import freeze_statistics
from fixbn_flwr.app.batches import batches_by_steps
from fixbn_flwr.app.cuda_graphs import CudaGraphs, Replay, replays
from fixbn_flwr.app.training import train
from fixbn_flwr.app.workbench import Workbench
from fixbn_flwr.method.batch_norm import statistics
from fixbn_flwr.method.learning_rate import multiplied_learning_rate
from fixbn_flwr.models.resnet20 import resnet20
from fixbn_flwr.tasks import Split, Task
from fixbn_flwr.tasks.augmentation import crop_and_flip
from fixbn_flwr.tasks.metrics import Accuracy

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CLIENTS, STEPS, BATCH = 3, 4, 8


def task_with(loss: Callable[[Tensor, Tensor], Tensor]) -> Task:
    return Task(
        name="noise", classes=10, load=lambda _: (data(), data()), models={"resnet20": resnet20},
        mean=(127.0,) * 3, std=(70.0,) * 3, augment=crop_and_flip, loss=loss, metric=Accuracy,
    )  # fmt: skip


def data() -> Split:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(256, (60, 3, 32, 32), dtype=torch.uint8, generator=random)
    return Split(images, torch.arange(60) % 10)


TASK, DATA = task_with(nn.functional.cross_entropy), data()


def again(step: Replay, _: torch.Generator) -> Replay:
    """Stand in for a capture: warm up, and replay by taking the step."""
    for _ in range(3):
        step()
    return step


class WithDropout(nn.Module):
    """ResNet-20 behind dropout, which draws from the device's own generator."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network, self.dropout = resnet20(), nn.Dropout(0.2)

    def forward(self, images: Tensor) -> Any:
        return self.network(self.dropout(images))


class OneGenerator(Workbench):
    """On a CPU too, all clients draw from one generator, which a capture knows."""

    def random_of(self, random: torch.Generator) -> torch.Generator:
        return self._random.set_state(random.get_state())


def bench_on(device: torch.device, *, cuda_graphs: bool = False) -> Workbench:
    model = WithDropout().to(device).to(memory_format=torch.channels_last)
    kind = OneGenerator if device == CPU else Workbench
    return kind(model, device, 0.9, 1e-4, cuda_graphs=cuda_graphs)


def round_of(
    bench: Workbench, task: Task = TASK, *, frozen: bool = False, graphs: CudaGraphs | None = None
) -> Iterator[Any]:
    """Train clients in turn from one model, each with its own momentum; yield their results."""
    start, stage = bench.arrays(), "frozen" if frozen else "moving"
    around = graphs and partial(graphs.around, stage=stage)
    momenta: list[dict[str, Tensor]] = [{} for _ in range(CLIENTS)]
    for server_round in range(2):
        for client in range(CLIENTS):
            bench.load(start)
            bench.optimizer.state.clear()
            for name, parameter in bench.model.named_parameters():
                if name in momenta[client]:
                    state = {"momentum_buffer": momenta[client][name].clone()}
                    bench.optimizer.state[parameter] = state
            bench.set_learning_rate(0.1 / (1 + server_round))
            seed = 10 * server_round + client
            torch.manual_seed(seed)
            random = torch.Generator().manual_seed(seed)
            own = torch.arange(client * 20, client * 20 + 20)
            batches = iter(list(batches_by_steps(own, BATCH, STEPS, random)))
            if frozen:
                with freeze_statistics(bench.model), multiplied_learning_rate(bench.optimizer, 0.5):
                    loss = train(bench, task, DATA, batches, random, around=around)
            else:
                loss = train(bench, task, DATA, batches, random, around=around)
            momenta[client] = {
                name: bench.optimizer.state[parameter]["momentum_buffer"].clone()
                for name, parameter in bench.model.named_parameters()
            }
            yield loss, bench.arrays(), {n: m.cpu().numpy() for n, m in momenta[client].items()}


def differences(graphs: CudaGraphs | None, device: torch.device, **options: Any) -> Iterator[float]:
    """Yield how far the numbers with and without graphs are apart, relative to the largest."""
    plain, captured = bench_on(device), bench_on(device)
    with_graphs = round_of(captured, graphs=graphs, **options)
    for a, b in zip(round_of(plain, **options), with_graphs, strict=True):
        yield abs(a[0] - b[0])
        for mine, others in zip(a[1:], b[1:], strict=True):
            for name, value in mine.items():
                scale = max(1e-6, float(np.abs(value).max()))
                yield float(np.abs(value - others[name]).max()) / scale


@pytest.mark.parametrize("frozen", [False, True])
def test_captured_steps_have_the_bits_of_plain_steps(frozen: bool) -> None:
    assert set(differences(CudaGraphs(again), CPU, frozen=frozen)) == {0.0}


def test_a_step_is_captured_once_for_each_stage_and_batch_size() -> None:
    captures = []

    def count(step: Replay, random: torch.Generator) -> Replay:
        captures.append(step)
        return again(step, random)

    bench, graphs = bench_on(CPU), CudaGraphs(count)
    for frozen in (False, True):
        list(round_of(bench, frozen=frozen, graphs=graphs))
    assert len(captures) == 2
    for size in (3, 5, 5):
        random = torch.Generator().manual_seed(0)
        around = partial(graphs.around, stage="moving")
        train(bench, TASK, DATA, iter([torch.arange(size)]), random, around=around)
    assert len(captures) == 4


def test_beyond_the_limit_steps_are_plain_ones() -> None:
    bench, plain, graphs = bench_on(CPU), bench_on(CPU), CudaGraphs(again)
    for size in range(2, 14):
        for one, around in ((bench, partial(graphs.around, stage=None)), (plain, None)):
            torch.manual_seed(size)
            random = torch.Generator().manual_seed(size)
            train(one, TASK, DATA, iter([torch.arange(size)]), random, around=around)
    for name, array in bench.arrays().items():
        assert np.array_equal(array, plain.arrays()[name]), name
    assert len(graphs._captured) == 8


def test_a_step_that_cannot_be_captured_is_taken_without(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(step: Replay, _: torch.Generator) -> Replay:
        step()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    assert set(differences(CudaGraphs(refuse), CPU)) == {0.0}
    (line,) = caplog.messages
    assert "cannot be captured (operation not permitted when stream is capturing)" in line
    assert "cuda-graphs=false" in line


def test_there_are_no_graphs_on_a_cpu() -> None:
    assert replays(bench_on(CPU, cuda_graphs=True), None) is None


@pytest.mark.gpu
@pytest.mark.parametrize("frozen", [False, True])
def test_on_a_gpu_graphs_agree_with_plain_steps_within_rounding(frozen: bool) -> None:
    assert replays(bench_on(GPU, cuda_graphs=True), None) is not None
    graphs = CudaGraphs()
    assert max(differences(graphs, GPU, frozen=frozen)) < 1e-3
    assert len(graphs._captured) == 1


@pytest.mark.gpu
def test_on_a_gpu_frozen_statistics_keep_their_bits() -> None:
    bench = bench_on(GPU)
    before = statistics(bench.model)
    list(round_of(bench, frozen=True, graphs=CudaGraphs()))
    after = statistics(bench.model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.gpu
def test_on_a_gpu_a_loss_that_looks_at_its_value_is_not_captured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value = nn.functional.cross_entropy(outputs, targets)
        return value * (2.0 if float(value) > 1.0 else 1.0)

    assert max(differences(CudaGraphs(), GPU, task=task_with(loss))) < 1e-3
    (line,) = caplog.messages
    assert "cannot be captured" in line
