"""Each normalisation agrees with its formula on a small tensor; only BN has statistics."""

import pytest
import torch
from torch import Tensor

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.norm import NORMS, counts_groups, normaliser

IMAGES = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1


def standardise(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5)


def in_groups(x: Tensor, groups: int) -> Tensor:
    return standardise(x.view(3, groups, 4 // groups, 2, 5), (2, 3, 4)).view_as(x)


def test_norms_lists_all_normalisations() -> None:
    assert NORMS == ("bn", "gn", "ln", "in", "none")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bn", standardise(IMAGES, (0, 2, 3))),
        ("gn", in_groups(IMAGES, 2)),
        ("gn1", in_groups(IMAGES, 1)),
        ("gn2", in_groups(IMAGES, 2)),
        ("gn4", in_groups(IMAGES, 4)),
        ("ln", standardise(IMAGES, (1, 2, 3))),
        ("in", standardise(IMAGES, (2, 3))),
        ("none", IMAGES),
    ],
)
def test_a_normalisation_agrees_with_its_formula(name: str, expected: Tensor) -> None:
    torch.testing.assert_close(normaliser(name)(4)(IMAGES), expected)


@pytest.mark.parametrize("name", ["gn", "gn4", "ln", "in"])
def test_other_normalisations_have_no_statistics(name: str) -> None:
    assert set(normaliser(name)(4).state_dict()) == {"weight", "bias"}


def test_bn_has_statistics() -> None:
    assert set(normaliser("bn")(4).state_dict()) == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


@pytest.mark.parametrize(
    "name", ["batch", "gn0", "gn-2", "gn02", "gn 2", "gn2.0", "gn2\n", "gn\u0664", "GN2", "bn2"]
)
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"does not exist: .*bn, gn, ln, in, none, .* as gn8"
    ) as e:
        normaliser(name)
    assert str(e.value).startswith(f"norm is {name!r}, ")
    assert not counts_groups(name)


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    assert counts_groups("gn12")
    make = normaliser("gn12")
    assert make(24).state_dict()["weight"].shape == (24,)
    with pytest.raises(
        ConfigError, match=r"norm is 'gn12', .* has 16 channels, which 12 does not divide"
    ):
        make(16)
