"""DeepLabV3+ with every normalisation: its layers, invalid options, and freezing."""

import socket
import sys

import pytest
import torch
from torch import nn
from torch.optim import SGD

from fixbn_flwr import freeze_statistics
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.batch_norm import statistics, statistics_layers
from fixbn_flwr.models.deeplab import deeplab

pytest.importorskip("segmentation_models_pytorch")

LAYERS = 61  # 52 in MobileNetV2, 9 in the decoder
IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def build(norm: str, classes: int = 11) -> nn.Module:
    torch.manual_seed(0)
    return deeplab(norm, classes=classes)


@pytest.mark.parametrize(
    ("norm", "kind", "groups"),
    [
        ("bn", nn.BatchNorm2d, set()),
        ("gn", nn.GroupNorm, {2}),
        ("gn8", nn.GroupNorm, {8}),
        ("ln", nn.GroupNorm, {1}),
        ("in", nn.InstanceNorm2d, {1}),  # layer normalisation where feature maps have one pixel
    ],
)
def test_every_normalisation_replaces_all_layers(
    norm: str, kind: type[nn.Module], groups: set[int]
) -> None:
    model = build(norm)
    kinds = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    assert len(layers) == LAYERS
    assert sum(isinstance(layer, kind) for layer in layers) == LAYERS - (norm == "in")
    assert {layer.num_groups for layer in layers if isinstance(layer, nn.GroupNorm)} == groups
    assert len(statistics(model)) == (2 * LAYERS if norm == "bn" else 0)
    # 4,378,256, and 257 for each class, with any normalisation.
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_381_083

    model.train()
    outputs = model(IMAGES)
    assert outputs.shape == (2, 11, 32, 48)
    torch.autograd.backward(outputs.square().mean())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(IMAGES[:1]).isfinite().all()


def test_the_same_seed_gives_the_same_weights_with_every_normalisation() -> None:
    weights = [
        [module.weight for module in build(norm).modules() if isinstance(module, nn.Conv2d)]
        for norm in ("bn", "gn")
    ]
    assert len(weights[0]) == len(weights[1]) > LAYERS
    assert all(map(torch.equal, *weights))


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("socket", "getaddrinfo"):
        monkeypatch.setattr(socket, name, lambda *_, **__: pytest.fail("asked for a connection"))
    assert build("bn", classes=19)(IMAGES).shape == (2, 19, 32, 48)


def test_frozen_statistics_keep_their_bits_and_all_parameters_train() -> None:
    model = build("bn").double().train()  # float32 would round a small step away
    for layer in statistics_layers(model).values():
        layer.momentum = 1.0  # one batch gives statistics that normalise
    model(IMAGES.double())
    before = statistics(model)
    values = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = SGD(model.parameters(), lr=0.1)
    with freeze_statistics(model):
        model.train()
        torch.autograd.backward(model(3 * IMAGES.double()).square().mean())
        optimizer.step()
    assert len(before) == 2 * LAYERS
    for name, value in statistics(model).items():
        assert torch.equal(value, before[name]), name
    unchanged = [
        name for name, value in model.named_parameters() if torch.equal(value, values[name])
    ]
    assert unchanged == []


def test_a_network_without_normalisation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"norm is 'none', .* choose one of bn, gn, ln, in\."):
        deeplab("none", classes=11)


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ConfigError, match="norm is 'batch', which does not exist"):
        deeplab("batch", classes=11)
    with pytest.raises(ConfigError, match=r"norm is 'gn16', but a layer .* has 24 channels"):
        deeplab("gn16", classes=11)


def test_a_missing_package_fails_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ConfigError, match=r'pip install "fixbn-flwr\[segmentation\]"'):
        deeplab("bn", classes=11)


def test_a_batch_of_one_image_is_refused_unless_statistics_are_frozen() -> None:
    model = build("bn").train()
    with pytest.raises(ConfigError, match=r"A batch has 1 image.*batch-size of 2 or more"):
        model(IMAGES[:1])
    with freeze_statistics(model):
        assert model(IMAGES[:1]).shape == (1, 11, 32, 48)
    assert build("gn").train()(IMAGES[:1]).shape == (1, 11, 32, 48)
