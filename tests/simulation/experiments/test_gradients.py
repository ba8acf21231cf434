"""The comparison of federated and centralised updates: where they are equal, and where they differ.

Identities are tested in float64, on scikit-learn's digits with the small residual network, and on a
line whose updates are computed by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fixbn_flwr.errors import ConfigError, NoStatisticsError
from fixbn_flwr.models.small_resnet import small_resnet
from fixbn_flwr.tasks import Split, Task, get_task, load_splits
from fixbn_flwr.tasks.partition import partition
from simulation.experiments.gradients import (
    LayerDifference,
    batch_against_global_statistics,
    federated_against_centralised,
)
from simulation.experiments.updates import ALL_LAYERS, Trial

EXACT = 1e-12
DIGITS = get_task("digits")
LAYERS = [
    "conv",
    "norm",
    *(f"blocks.{block}.{name}{i}" for block in (0, 1) for i in (1, 2) for name in ("conv", "norm")),
    "classifier",
]
ONE_STEP = {"local_steps": 1, "batch_size": 8, "learning_rate": 0.1, "draws": 2, "seed": 3}


def train_split() -> Split:
    return load_splits(DIGITS)[0]


def clients(scheme: Any = "classes") -> list[np.ndarray]:
    """Five clients of two classes each."""
    return partition(train_split().labels, 5, scheme, alpha=0.1, classes_per_client=2, seed=0)


def network(norm: str = "bn") -> nn.Module:
    """Return a global model with the statistics of training images."""
    torch.manual_seed(5)
    model = small_resnet(norm).double()
    data = train_split()
    with torch.no_grad():
        model.train()(data.images[:64].double() / 6 - 1)
    return model


def measure(
    task: Task, data: Split, partitions: Any, model: nn.Module, *, frozen: bool, **steps: Any
) -> list[LayerDifference]:
    return federated_against_centralised(
        Trial(task, data, partitions, model, **steps), frozen=frozen
    )


def digits(model: nn.Module, **changed: Any) -> list[LayerDifference]:
    arguments: dict[str, Any] = {"task": DIGITS, "partitions": clients(), "frozen": False}
    return measure(data=train_split(), model=model, **{**arguments, **ONE_STEP, **changed})


def assert_equal_updates(differences: Sequence[LayerDifference]) -> None:
    assert [d.name for d in differences] == [*LAYERS, ALL_LAYERS]
    assert [d.depth for d in differences] == [*range(len(LAYERS)), -1]
    for difference in differences:
        assert difference.cosine == pytest.approx(1, abs=EXACT), difference
        assert difference.norm_ratio == pytest.approx(1, abs=EXACT), difference
        assert difference.distance == pytest.approx(0, abs=EXACT), difference


@pytest.mark.parametrize(("norm", "frozen"), [("bn", True), ("gn", False)])
def test_one_step_equals_the_centralised_one_in_every_layer_if_images_are_independent(norm, frozen):
    assert_equal_updates(digits(network(norm), frozen=frozen))


def test_batch_statistics_of_clients_with_different_classes_deviate_after_one_step():
    differences = digits(network())
    assert [d.name for d in differences] == [*LAYERS, ALL_LAYERS]
    assert min(d.cosine for d in differences) < 0.999
    assert differences[-1].distance > 0.01


@pytest.mark.parametrize("local_steps", [1, 3])
def test_batch_statistics_do_not_deviate_if_all_clients_have_the_same_batches(local_steps):
    same = clients("iid")[0][:8]
    assert_equal_updates(digits(network(), partitions=[same] * 3, local_steps=local_steps))


def test_with_frozen_statistics_the_drift_grows_with_the_number_of_steps():
    model = network()
    one, two, five = (
        digits(model, frozen=True, local_steps=steps)[-1].distance for steps in (1, 2, 5)
    )
    assert one < EXACT
    assert 1e-6 < two < five


def test_the_model_and_the_global_generator_do_not_change():
    model = network()
    model.blocks[0].eval()  # modes differ from layer to layer
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    for frozen in (False, True):
        digits(model, frozen=frozen)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert [type(module) for module in model.modules()] == [type(m) for m in network().modules()]


def test_clients_start_from_the_global_statistics():
    # Otherwise a client would start with the statistics of the previous client, which has no effect
    # on updates with batch statistics.
    seen: list[Tensor] = []

    class Watched(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.running_mean.clone())
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), Watched(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )
    model(torch.zeros(2, 1, 8, 8))
    model.double()
    start = model[1].running_mean.clone()
    seen.clear()
    digits(model, draws=1)
    assert len(seen) == 6  # five clients and the union
    assert all(torch.equal(mean, start) for mean in seen)


def test_batches_depend_only_on_the_seed():
    model = network()
    first = digits(model)
    assert digits(model) == first
    assert digits(model, seed=4) != first


def test_dropout_depends_only_on_the_seed():
    model = network()
    model.classifier = nn.Sequential(nn.Dropout(0.5), model.classifier)
    first = digits(model, frozen=True)
    torch.manual_seed(99)
    assert digits(model, frozen=True) == first


def test_clients_draw_independently():
    # With equal draws from the same images, the updates would not deviate.
    same = clients("iid")[0]
    assert digits(network(), partitions=[same] * 3)[-1].distance > 0.01


def test_the_union_has_the_augmented_images_of_the_clients():
    calls: list[tuple[int, torch.dtype]] = []

    def noise(images: Tensor, random: torch.Generator) -> Tensor:
        calls.append((len(images), images.dtype))
        return images + torch.randn(images.shape, generator=random, dtype=images.dtype)

    noisy = replace(DIGITS, augment=noise)
    assert_equal_updates(digits(network(), task=noisy, frozen=True))
    assert calls == [(8, torch.float64)] * 5 * 2  # once for each client's batch in each draw
    plain, augmented = (digits(network(), task=task)[-1] for task in (DIGITS, noisy))
    assert plain.distance != augmented.distance


def test_images_and_masks_of_a_segmentation_task_are_cropped_together_and_once():
    from fixbn_flwr.tasks.segmentation import Masks, mean_iou, pixel_cross_entropy

    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (6, 1, 32, 32), dtype=torch.uint8, generator=random)
    data = Split(images, (images[:, 0] > 127).to(torch.uint8))
    task = Task(
        "squares",
        2,
        load=lambda _: (data, data),
        models={},
        mean=(127.0,),
        std=(75.0,),
        augment=None,
        loss=pixel_cross_entropy,
        metric=partial(mean_iou, 2),
        masks=Masks(crop=(16, 16), window=(32, 32), evaluation_batch=2),
    )
    shapes: list[Any] = []
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)).double()  # 3x3 depends on mirroring
    model.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    two = [np.arange(3), np.arange(3, 6)]
    steps = {**ONE_STEP, "batch_size": 3, "draws": 1}
    differences = measure(task, data, two, model, frozen=False, **steps)
    assert shapes == [(3, 1, 16, 16), (3, 1, 16, 16), (6, 1, 16, 16)]
    assert [d.distance for d in differences] == pytest.approx([0, 0], abs=EXACT)


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs[:, 0] - targets) ** 2).mean() / 2


def points(*values: int) -> tuple[Task, Split]:
    """Return a task whose images have one pixel, with this normalised value, and the target 1."""
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1) * 2 + 3
    task = replace(DIGITS, name="points", mean=(3.0,), std=(2.0,), loss=half_square)
    return task, Split(images, torch.ones(len(values), dtype=torch.int64))


def line(bias: bool) -> nn.Module:
    """`weight * pixel + bias`, both zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=bias)).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def test_updates_of_a_line_equal_those_computed_by_hand():
    # Weight and bias after two steps of 0.5: client 0 (pixel 1) (.5, .5), (.5, .5); client 1
    # (pixel 2) (1, .5), (-.5, -.25); mean (0, .125). Union: (.75, .5), (.1875, .1875).
    task, data = points(1, 2)
    arguments: dict[str, Any] = {"local_steps": 2, "batch_size": 1, "learning_rate": 0.5}
    two = [np.array([0]), np.array([1])]
    layer, whole = measure(
        task, data, two, line(bias=True), frozen=False, draws=1, seed=0, **arguments
    )
    assert (layer.name, layer.depth, whole.name) == ("1", 0, ALL_LAYERS)
    for found in (layer, whole):
        assert found.cosine == pytest.approx(0.5**0.5, abs=EXACT)
        assert found.norm_ratio == pytest.approx(2**0.5 / 3, abs=EXACT)
        assert found.distance == pytest.approx(5**0.5 / 3, abs=EXACT)


def test_ratios_are_averaged_over_draws_not_updates():
    # Client 0 has pixels 1 and 2, client 1 pixel 3. Weight after two steps of 0.5, when client 0
    # takes its pixels in this order: mean of (.5, -3.75), union -1. In the other: mean of
    # (1, -3.75), union -.875.
    task, data = points(1, 2, 3)
    arguments: dict[str, Any] = {"local_steps": 2, "batch_size": 1, "learning_rate": 0.5}
    two = [np.array([0, 1]), np.array([2])]

    def ratio(draws: int, seed: int) -> float:
        found = measure(
            task, data, two, line(bias=False), frozen=False, draws=draws, seed=seed, **arguments
        )
        return found[-1].norm_ratio

    one, other = 13 / 8, 11 / 7
    single = [ratio(1, seed) for seed in range(8)]
    assert {round(r, 9) for r in single} == {round(one, 9), round(other, 9)}
    mixtures = [(k * one + (8 - k) * other) / 8 for k in range(1, 8)]
    assert min(abs(ratio(8, 0) - mixture) for mixture in mixtures) < EXACT


def test_steps_have_neither_momentum_nor_weight_decay():
    # With weight 1 and pixel 1 the loss is minimal and its gradient zero. So the centralised update
    # is zero, and no layer is compared.
    task, data = points(1)
    model = line(bias=False)
    nn.init.ones_(model[1].weight)
    steps = {"local_steps": 3, "batch_size": 1, "learning_rate": 0.5, "draws": 1, "seed": 0}
    assert measure(task, data, [np.array([0])], model, frozen=False, **steps) == []


def test_a_layer_that_is_not_trained_is_omitted_and_the_others_keep_their_depth():
    model = network()
    model.conv.weight.requires_grad_(False)
    differences = digits(model, frozen=True)
    assert [d.name for d in differences] == [*LAYERS[1:], ALL_LAYERS]
    assert [d.depth for d in differences] == [*range(1, len(LAYERS)), -1]


def test_a_federated_update_of_zero_has_no_direction():
    # Each client has one image twice in its batch. Batch normalization turns it into zeros, which
    # give no gradient to earlier layers. In the union the images differ.
    task, data = points(1, 2)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1), nn.Tanh(), nn.Linear(1, 1)
    ).double()
    two = [np.array([0]), np.array([1])]
    # With targets 1 and 0 the gradients of the two images differ after normalisation.
    data = replace(data, targets=torch.tensor([1, 0]))
    steps = {"local_steps": 1, "batch_size": 2, "learning_rate": 0.5, "draws": 1, "seed": 0}
    first = measure(task, data, two, model, frozen=False, **steps)[0]
    assert first == LayerDifference("1", 0, cosine=0.0, norm_ratio=0.0, distance=1.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"local_steps": 0}, "local_steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"draws": 0}, "draws=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"partitions": []}, r"partitions of \[\] images"),
        ({"partitions": [np.arange(3), np.arange(0)]}, r"partitions of \[3, 0\] images"),
    ],
)
def test_an_invalid_argument_is_named(changed, message):
    with pytest.raises(ConfigError, match=message):
        digits(network(), **changed)


def test_a_diverged_update_is_an_error():
    with pytest.raises(ConfigError, match=r"learning_rate=1e\+200"):
        digits(network(), frozen=True, local_steps=3, learning_rate=1e200)


def test_frozen_needs_statistics():
    with pytest.raises(NoStatisticsError):
        digits(network("gn"), frozen=True)


def own_updates(model: nn.Module, **changed: Any) -> list[LayerDifference]:
    trial = Trial(**{
        "task": DIGITS, "data": train_split(), "partitions": clients(), "model": model,
        **ONE_STEP, **changed,
    })  # fmt: skip
    return batch_against_global_statistics(trial)


def test_a_clients_own_update_differs_between_batch_and_global_statistics() -> None:
    layers = own_updates(network())
    assert [layer.name for layer in layers] == [*LAYERS, ALL_LAYERS]
    assert all(layer.cosine < 1 - 1e-4 for layer in layers[:-2])
    assert layers[-1].distance > 0.1


def test_a_clients_own_update_is_the_same_if_the_global_statistics_are_those_of_its_batch() -> None:
    task, data = points(*range(1, 9))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1), nn.Dropout(), nn.Linear(1, 1)).double()
    model[1].running_mean.fill_(4.5)
    model[1].running_var.fill_(5.25)  # biased, as a batch is normalised
    arguments = {"task": task, "data": data, "partitions": [np.arange(8)], "batch_size": 8}
    (*layers, whole) = own_updates(model, **arguments)
    assert [layer.name for layer in layers] == ["1", "3"]
    # The batch adds terms to the gradients of earlier layers only, and there are none. Dropout
    # must draw the same twice.
    assert whole.cosine == pytest.approx(1, abs=EXACT)
    assert whole.distance == pytest.approx(0, abs=1e-9)


def test_a_model_without_statistics_has_no_global_ones() -> None:
    with pytest.raises(NoStatisticsError):
        own_updates(network("gn"))
