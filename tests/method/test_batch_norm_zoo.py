"""freeze_statistics on every model of torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fixbn_flwr import freeze_statistics
from fixbn_flwr.errors import NoStatisticsError
from fixbn_flwr.method.batch_norm import statistics, statistics_layers
from tests.support.batch_norm import statistics_unchanged

ZOO = [name for name in torchvision.models.list_models() if not name.startswith("quantized_")]
WITHOUT_STATISTICS = (
    "alexnet", "convnext", "mvit", "raft_small", "squeezenet", "ssd300", "swin", "vit",
    *(f"vgg{layers}" for layers in (11, 13, 16, 19)),
)  # fmt: skip


class _WeightsOnMeta(TorchFunctionMode):
    """Creates weights on the meta device, but statistics (torch.zeros, torch.ones) on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs["device"] = "meta"
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def _real() -> Iterator[None]:
    yield


def _zoo_model(name: str, *, real: bool = False, **choices: Any) -> nn.Module:
    build = torchvision.models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(build).parameters:
        choices["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        choices["init_weights"] = False  # avoids a warning
    # This model runs a forward pass when it is built.
    real = real or name == "ssdlite320_mobilenet_v3_large"
    with _real() if real else _WeightsOnMeta():
        return build(weights=None, **choices)


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo_freezes(name: str) -> None:
    model = _zoo_model(name)
    expected = {name for name in model.state_dict() if "running_" in name}
    if not expected:
        assert name.startswith(WITHOUT_STATISTICS)
        with pytest.raises(NoStatisticsError), freeze_statistics(model):
            pytest.fail("entered")
        return
    assert not name.startswith(WITHOUT_STATISTICS) or name.endswith("_bn")
    assert statistics(model).keys() == expected
    layers = [layer for layer in model.modules() if hasattr(layer, "num_batches_tracked")]
    layers = [layer for layer in layers if layer.num_batches_tracked is not None]
    assert 2 * len(layers) == len(expected)
    classes = [type(layer) for layer in layers]
    with freeze_statistics(model):
        model.train()
        assert not any(layer.training for layer in layers)
        assert all(module.training for module in set(model.modules()) - set(layers))
    assert all(layer.training for layer in layers)
    assert [type(layer) for layer in layers] == classes


def test_most_models_of_the_zoo_have_statistics() -> None:
    """Few models are excluded, so models of a new torchvision are tested or fail."""
    assert sum(not name.startswith(WITHOUT_STATISTICS) for name in ZOO) >= 60
    assert {"deeplabv3_resnet50", "fasterrcnn_resnet50_fpn_v2", "r3d_18"} <= set(ZOO)


@pytest.mark.parametrize(
    ("name", "arrays", "missed"),
    [
        ("resnet18", 100, 15),
        ("mobilenet_v2", 260, 260),
        ("vgg11_bn", 40, 40),
        ("densenet121", 605, 605),
        ("deeplabv3_mobilenet_v3_large", 265, 265),
    ],
)
def test_a_search_by_name_misses_layers_that_a_search_by_class_finds(
    name: str, arrays: int, missed: int
) -> None:
    """Published code searches for `"bn" in name`; this package searches by class."""
    model = _zoo_model(name)
    of_layers = {
        f"{layer_name}.{array}"
        for layer_name, layer in statistics_layers(model).items()
        for array in layer.state_dict()
    }
    by_name = {array for array in model.state_dict() if "bn" in array}
    assert len(of_layers) == arrays
    assert len(of_layers - by_name) == missed


def _image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def _classify(model: nn.Module) -> Tensor:
    loss: Tensor = model(_image(2, 3, 64, 64)).square().mean()
    return loss


def _segment(model: nn.Module) -> Tensor:
    outputs = model(_image(1, 3, 64, 64))  # one image: DeepLab's pooled branch has 1x1 maps
    loss: Tensor = sum(output.square().mean() for output in outputs.values())
    return loss


def _detect(model: nn.Module) -> Tensor:
    boxes = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    losses = model([_image(3, 64, 64)] * 2, [boxes] * 2)
    loss: Tensor = sum(losses.values())
    return loss


def _watch(model: nn.Module) -> Tensor:
    loss: Tensor = model(_image(1, 3, 4, 32, 32)).square().mean()
    return loss


@pytest.mark.parametrize(
    ("name", "train", "choices"),
    [
        ("resnet18", _classify, {}),
        ("mobilenet_v2", _classify, {}),
        ("shufflenet_v2_x0_5", _classify, {}),
        ("lraspp_mobilenet_v3_large", _segment, {}),
        ("deeplabv3_mobilenet_v3_large", _segment, {}),
        ("ssdlite320_mobilenet_v3_large", _detect, {"num_classes": 3}),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", _detect, {"num_classes": 3, "min_size": 64}),
        ("mc3_18", _watch, {}),
    ],
)
def test_frozen_models_of_the_zoo_train(
    name: str, train: Callable[[nn.Module], Tensor], choices: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = _zoo_model(name, real=True, **choices)
    before = statistics(model)
    with freeze_statistics(model):
        model.train()
        loss = train(model)
        loss.backward()
    assert torch.isfinite(loss)
    assert statistics_unchanged(model, before)
    for layer in statistics_layers(model).values():
        assert layer.num_batches_tracked == 0
        assert layer.training
        assert layer.weight.grad is not None
