"""Networks of timm and torchvision: their outputs, every normalisation, and what is refused."""

import sys

import pytest
import torch
from torch import nn

from fixbn_flwr import freeze_statistics
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.libraries import check_library_model, library_model

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(model: str, norm: str = "bn", *, channels: int = 3, per_pixel: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return library_model(model, norm, classes=5, channels=channels, per_pixel=per_pixel)


@pytest.mark.parametrize(
    "model",
    [
        "timm:resnet10t",
        "timm:mobilenetv3_small_050",  # its BN layers have the activation in them
        "torchvision:resnet18",
        "torchvision:googlenet",  # without its auxiliary classifiers
    ],
)
def test_a_network_has_as_many_outputs_as_classes(model: str) -> None:
    network = build(model)
    assert network(IMAGES).shape == (2, 5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with freeze_statistics(network):
        network.train()(IMAGES)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_network_of_timm_takes_grey_images() -> None:
    assert build("timm:resnet10t", channels=1)(IMAGES[:, :1]).shape == (2, 5)
    with pytest.raises(ConfigError, match="takes RGB images, but those of this task have 1 ch"):
        build("torchvision:resnet18", channels=1)


@pytest.mark.parametrize("model", ["timm:mobilenetv3_small_050", "torchvision:resnet18"])
@pytest.mark.parametrize(("norm", "kind"), [("gn", nn.GroupNorm), ("in", nn.InstanceNorm2d)])
def test_another_norm_replaces_every_batch_normalisation(
    model: str, norm: str, kind: type[nn.Module]
) -> None:
    plain, replaced = build(model), build(model, norm)

    def count(network: nn.Module, of: type[nn.Module]) -> int:
        return sum(isinstance(module, of) for module in network.modules())

    layers = count(plain, nn.BatchNorm2d)
    assert layers > 15
    assert (count(replaced, nn.BatchNorm2d), count(replaced, kind)) == (0, layers)
    for activation in (nn.Hardswish, nn.ReLU):  # those inside timm's layers are kept
        assert count(replaced, activation) == count(plain, activation)
    assert replaced(IMAGES).shape == (2, 5)


def test_norms_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="norm is 'none', which timm:resnet10t does not support"):
        build("timm:resnet10t", "none")
    with pytest.raises(ConfigError, match="vit_b_16 has no batch normalisation to replace: use no"):
        build("torchvision:vit_b_16", "gn")


def test_segmentation_networks_return_logits_for_each_pixel() -> None:
    network = build("torchvision:lraspp_mobilenet_v3_large", per_pixel=True)
    assert network(IMAGES).shape == (2, 5, 64, 64)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r'install it with pip install "fixbn-flwr\[timm\]"'):
        check_library_model("timm:resnet18", per_pixel=False)


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("network access")

    monkeypatch.setattr("socket.socket.connect", refuse)
    build("timm:resnet10t")
    build("torchvision:lraspp_mobilenet_v3_large", per_pixel=True)
