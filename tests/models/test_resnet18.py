"""ResNet-18: its size with each normalisation, the sizes of its feature maps, and training."""

import pytest
import torch
from torch import nn

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.norm import NORMS
from fixbn_flwr.models.resnet18 import resnet18


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# torchvision's model has 11,689,512 parameters for 1,000 classes. Subtract 800 rows of 512 weights
# and a bias, and 7,680 of its larger stem. FixUp's shortcuts have no convolutions (172,032), and it
# has scalars instead of scales and shifts (9,600).
@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("bn", 11_271_432),
        ("gn", 11_271_432),
        ("ln", 11_271_432),
        ("in", 11_271_432),
        ("none", 11_271_432 - 172_032 - 9_600 + 42),  # 5 scalars in each of 8 blocks, 2 outside
    ],
)
def test_resnet18_has_the_expected_number_of_parameters(norm: str, expected: int) -> None:
    assert parameters(resnet18(norm)) == expected


@pytest.mark.parametrize("norm", NORMS)
def test_resnet18_has_18_layers_without_its_shortcuts(norm: str) -> None:
    layers = [
        name
        for name, module in resnet18(norm).named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in name
    ]
    assert len(layers) == 18


def test_all_20_normalisation_layers_are_replaced() -> None:
    kinds = {
        "bn": (nn.BatchNorm2d, None),
        "gn": (nn.GroupNorm, 2),
        "gn8": (nn.GroupNorm, 8),
        "ln": (nn.GroupNorm, 1),
        "in": (nn.InstanceNorm2d, None),
    }
    every = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
    for norm, expected in kinds.items():
        found = [
            (type(module), getattr(module, "num_groups", None))
            for module in resnet18(norm).modules()
            if isinstance(module, every)
        ]
        assert found == [expected] * 20


def test_feature_maps_have_64_32_16_and_8_pixels() -> None:
    model, shapes = resnet18(), []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda _module, _inputs, out: shapes.append(out.shape[1:]))
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 200)
    assert shapes == [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8)]


def test_the_stem_is_initialised_like_the_other_convolutions() -> None:
    torch.manual_seed(0)
    model = resnet18()
    scale = model.layer1[0].conv1.weight.std().item()  # has as many outputs with as many pixels
    assert model.conv1.weight.std().item() == pytest.approx(scale, rel=0.05)


@pytest.mark.parametrize("norm", ["bn", "none"])
def test_all_parameters_train(norm: str) -> None:
    torch.manual_seed(0)
    model = resnet18(norm, classes=3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    images, targets = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    for _ in range(3):  # FixUp's first layers change in the third step
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(images), targets))
        optimiser.step()
    assert [n for n, value in model.named_parameters() if torch.equal(value, before[n])] == []


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ConfigError, match="norm is 'batch'"):
        resnet18("batch")
    with pytest.raises(ConfigError, match=r"norm is 'gn3', but a layer .* has 64 channels"):
        resnet18("gn3")
