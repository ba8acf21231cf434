"""Each normalisation against its formula on a small tensor, and what it keeps in the state."""

import pytest
import torch
from torch import Tensor

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.norm import NORMS, normaliser

IMAGES = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1


def standardise(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5)


def two_groups(x: Tensor) -> Tensor:
    return standardise(x.view(3, 2, 2, 2, 5), (2, 3, 4)).view_as(x)


def test_names() -> None:
    assert NORMS == ("bn", "gn", "ln", "in", "none")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bn", standardise(IMAGES, (0, 2, 3))),
        ("gn", two_groups(IMAGES)),
        ("ln", standardise(IMAGES, (1, 2, 3))),
        ("in", standardise(IMAGES, (2, 3))),
        ("none", IMAGES),
    ],
)
def test_formula(name: str, expected: Tensor) -> None:
    torch.testing.assert_close(normaliser(name)(4)(IMAGES), expected)


@pytest.mark.parametrize("name", ["gn", "ln", "in"])
def test_only_bn_keeps_statistics(name: str) -> None:
    assert set(normaliser(name)(4).state_dict()) == {"weight", "bias"}


def test_bn_keeps_statistics() -> None:
    assert set(normaliser("bn")(4).state_dict()) == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"norm is 'batch'.*bn, gn, ln, in, none"):
        normaliser("batch")
