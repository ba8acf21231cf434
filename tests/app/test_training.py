"""Local training and evaluation: exact batches, steps and means."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fixbn_flwr.app import training
from fixbn_flwr.app.batches import batches_by_epochs, batches_by_steps
from fixbn_flwr.app.training import evaluate, seed_of, train
from fixbn_flwr.app.workbench import Workbench, find_device, workbench
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import Split, Task, get_task
from fixbn_flwr.tasks.image_files import ImageFiles

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("images", "size", "steps"), [(10, 4, 5), (10, 10, 3), (3, 8, 4), (7, 1, 7)]
)
def test_steps_are_full_batches_in_passes_over_all_images(
    images: int, size: int, steps: int
) -> None:
    indices = torch.arange(100, 100 + images)
    batches = list(batches_by_steps(indices, size, steps, generator()))
    assert [len(batch) for batch in batches] == [size] * steps
    drawn = torch.cat(batches).tolist()
    for start in range(0, len(drawn), images):  # one pass after the other
        one_pass = drawn[start : start + images]
        assert len(set(one_pass)) == len(one_pass)
        assert set(one_pass) <= set(indices.tolist())


@pytest.mark.parametrize(
    ("images", "size", "sizes"),
    [(10, 4, [4, 3, 3]), (9, 4, [3, 3, 3]), (33, 16, [11, 11, 11]), (8, 4, [4, 4]), (3, 8, [3])],
)
def test_epochs_use_every_image_and_have_no_tiny_batch(
    images: int, size: int, sizes: list[int]
) -> None:
    indices = torch.arange(100, 100 + images)
    batches = list(batches_by_epochs(indices, size, 2, generator()))
    assert [len(batch) for batch in batches] == sizes * 2
    first, second = torch.cat(batches[: len(sizes)]), torch.cat(batches[len(sizes) :])
    assert sorted(first.tolist()) == sorted(second.tolist()) == indices.tolist()
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("batches", [batches_by_steps, batches_by_epochs])
def test_the_order_depends_only_on_the_generator(batches: Any) -> None:
    indices = torch.arange(20)

    def drawn(seed: int) -> list[int]:
        return list(torch.cat(list(batches(indices, 5, 2, generator(seed)))).tolist())

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


class Line(nn.Module):
    """`slope * pixel`, for images of one pixel; records train and eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.slope * images.flatten()


class MeanOutput:
    """A metric: the mean of the outputs."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def to(self, _device: torch.device) -> MeanOutput:
        return self

    def update(self, outputs: Tensor, _targets: Tensor) -> None:
        self.outputs.append(outputs)

    def compute(self) -> Tensor:
        return torch.cat(self.outputs).mean()


def line_task(**changes: Any) -> Task:
    task = Task(
        name="line",
        classes=1,
        load=lambda _: pytest.fail("not to be loaded"),
        models={"line": lambda _norm: Line()},
        mean=(2.0,),
        std=(4.0,),
        augment=None,
        loss=lambda outputs, targets: ((outputs - targets) ** 2).mean(),
        metric=MeanOutput,  # type: ignore[arg-type]
    )
    return replace(task, **changes)


def line_bench(momentum: float = 0.0, learning_rate: float = 0.5) -> tuple[Workbench, Line]:
    bench = workbench(line_task(), "line", "none", momentum, 0.0, "cpu")
    bench.set_learning_rate(learning_rate)
    assert isinstance(bench.model, Line)
    return bench, bench.model


# Pixels 6, 10 and 2 are 1, 2 and 0 after normalisation.
LINE = Split(
    torch.tensor([6, 10, 2], dtype=torch.uint8).view(3, 1, 1, 1), torch.tensor([0.0, 1.0, 4.0])
)


def test_a_step_is_sgd_on_normalised_pixels() -> None:
    bench, line = line_bench(momentum=0.5)
    batches = iter([torch.tensor([0]), torch.tensor([0, 1])])
    loss = train(bench, line_task(), LINE, batches, generator())
    # Step 1: slope 1, output 1, loss 1, gradient 2, slope 1 - 0.5 * 2 = 0.
    # Step 2: outputs 0 and 0, loss (0 + 1) / 2, gradient (0 - 4) / 2 = -2, buffer -2 + 0.5 * 2.
    assert loss == 0.75
    assert float(line.slope.detach()) == 0.5
    assert line.modes == [True, True]


def test_augmentation_receives_the_normalised_batch_and_the_generator() -> None:
    seen: list[Tensor] = []

    def augment(images: Tensor, random: torch.Generator) -> Tensor:
        seen.append(images)
        return images + torch.rand((), generator=random) * 0 + 1

    bench, _ = line_bench(learning_rate=0.0)
    random = generator()
    before = random.get_state()
    loss = train(bench, line_task(augment=augment), LINE, iter([torch.tensor([1, 2])]), random)
    assert [images.flatten().tolist() for images in seen] == [[2.0, 0.0]]
    assert loss == ((3 - 1) ** 2 + (1 - 4) ** 2) / 2
    assert not torch.equal(random.get_state(), before)


def test_evaluation_is_the_mean_over_the_images_in_eval_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, line = line_bench()
    # Outputs 1, 2, 0; squared errors 1, 1, 16.
    for size in (500, 3, 2, 1):  # with 2 the last chunk is smaller than the first
        monkeypatch.setattr(training, "EVALUATION_BATCH", size)
        assert evaluate(bench, line_task(), LINE) == (6.0, 1.0)
    assert set(line.modes) == {False}


def test_targets_move_to_the_device_of_batches_also_if_images_are_files(tmp_path: Path) -> None:
    images = ImageFiles([tmp_path / "1.png"], read=lambda _: torch.zeros(1, 8, 8))
    moved = training.on_device(Split(images, torch.zeros(1)), torch.device("meta"))
    assert moved.images is images
    assert moved.targets.device.type == "meta"  # type: ignore[union-attr]


def test_evaluation_does_not_change_the_model() -> None:
    task = get_task("digits")
    bench = workbench(task, "small-resnet", "bn", 0.9, 0.0, "cpu")
    before = bench.arrays()
    data = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
    loss, accuracy = evaluate(bench, task, data)
    assert math.isfinite(loss)
    assert 0 <= accuracy <= 1
    for name, array in bench.arrays().items():
        assert array.tobytes() == before[name].tobytes(), name


def test_bfloat16_runs_the_forward_pass_in_autocast() -> None:
    types: list[torch.dtype] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        types.append(outputs.dtype)
        return cross_entropy(outputs.float(), targets)

    task = replace(get_task("digits"), loss=loss)
    data = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
    bench = workbench(task, "small-resnet", "bn", 0.9, 0.0, "cpu")
    for precision in ("float32", "bfloat16"):
        train(bench, task, data, iter([torch.arange(4)]), generator(), precision)
    assert types == [torch.float32, torch.bfloat16]
    assert {array.dtype for array in bench.arrays().values()} == {
        np.dtype(np.float32), np.dtype(np.int64)
    }  # fmt: skip


def test_arrays_are_contiguous_and_load_into_any_memory_format() -> None:
    task = get_task("digits")
    bench = workbench(task, "small-resnet", "bn", 0.9, 0.0, "cpu")
    weights = [p for p in bench.model.parameters() if p.dim() == 4 and p.shape[1] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    arrays = bench.arrays()
    assert all(array.flags.c_contiguous for array in arrays.values())
    changed = {name: np.asarray(array + 1) for name, array in arrays.items()}
    bench.load(changed)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    for name, array in bench.arrays().items():
        assert np.array_equal(array, changed[name]), name
        assert not np.array_equal(array, arrays[name]), name  # the returned arrays do not change


def test_a_workbench_is_built_again_only_for_other_settings() -> None:
    task = get_task("digits")
    first = workbench(task, "small-resnet", "bn", 0.9, 0.0, "cpu")
    assert workbench(task, "small-resnet", "bn", 0.9, 0.0, "cpu") is first
    other = workbench(task, "small-resnet", "gn", 0.5, 0.25, "cpu")
    (group,) = other.optimizer.param_groups
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.5, 0.25, 0.0)
    other.set_learning_rate(0.125)
    assert group["lr"] == 0.125


def test_cudnn_benchmark_is_off_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    workbench.cache_clear()
    workbench(get_task("digits"), "small-resnet", "bn", 0.9, 0.0, "cpu")
    assert not torch.backends.cudnn.benchmark


def test_find_device_returns_existing_devices_and_refuses_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == find_device("cpu") == CPU
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ConfigError, match=f"device='{name}': this machine has 0 CUDA devices"):
            find_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == find_device("cuda") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="device='cuda:2': this machine has 2 CUDA devices"):
        find_device("cuda:2")


def test_seeds_depend_on_each_part_and_fit_a_generator() -> None:
    parts = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2)]
    seeds = {seed_of(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert seed_of(0, 1, 2) == seed_of(0, 1, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)
    generator(seed_of(2**32 - 1, 10**6, 10**6))
