from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.common import Array as FlowerArray
from numpy.testing import assert_array_equal

from fixbn_flwr.method.averaging import (
    Array,
    Kind,
    first_spoilt,
    kind_of,
    merged_counters,
    of_kind,
    pooled_statistics,
    weighted_mean,
)

# METHOD's example: p = (1/4, 3/4), means (0, 4), variances (1, 1).
EXAMPLE = [
    {"bn.running_mean": np.float32([mean]), "bn.running_var": np.float32([1])} for mean in (0, 4)
]
WEIGHTS = [1, 3]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("layer1.0.downsample.1.running_mean", Kind.STATISTIC),
        ("running_var", Kind.STATISTIC),
        ("features.1.num_batches_tracked", Kind.COUNTER),
        ("bn1.weight", Kind.PARAMETER),
        ("bn1.bias", Kind.PARAMETER),
        ("running_mean.weight", Kind.PARAMETER),
        ("head.my_running_mean", Kind.PARAMETER),
    ],
)
def test_kind_of_classifies_arrays_by_name(name: str, kind: Kind) -> None:
    assert kind_of(name) is kind


def test_integers_are_not_parameters() -> None:
    arrays: dict[str, Array] = {
        "w": np.zeros(2, np.float16),
        "attention.relative_position_index": np.arange(3),
        "mask": np.array([True]),
    }
    assert list(of_kind(arrays, Kind.PARAMETER)) == ["w"]
    assert list(of_kind(arrays, Kind.COUNTER)) == ["attention.relative_position_index", "mask"]


def test_the_weighted_mean_of_the_example_is_exact() -> None:
    average = weighted_mean(EXAMPLE, WEIGHTS)
    assert average == {"bn.running_mean": 3, "bn.running_var": 1}


def test_the_pooled_statistics_of_the_example_are_exact() -> None:
    average = pooled_statistics(EXAMPLE, WEIGHTS)
    assert average == {"bn.running_mean": 3, "bn.running_var": 4}


def test_pooled_variance_is_the_variance_of_all_data() -> None:
    random = np.random.default_rng(0)
    parts = [random.normal(client, client + 1, (10 * (client + 1), 5)) for client in range(3)]
    updates = [{"running_mean": x.mean(0), "running_var": x.var(0)} for x in parts]
    pooled = pooled_statistics(updates, [len(x) for x in parts])
    all_data = np.concatenate(parts)
    np.testing.assert_allclose(pooled["running_mean"], all_data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(pooled["running_var"], all_data.var(0), rtol=1e-12)


def test_pooled_variance_is_never_below_zero() -> None:
    """METHOD's formula, sum p (var + mu^2) - mu^2, taken literally falls below zero by rounding."""
    random = np.random.default_rng(0)
    means = [8000 + 1e-7 * random.standard_normal(500) for _ in range(5)]
    mean = sum(0.2 * own for own in means)
    assert (
        np.min(sum(0.2 * own**2 for own in means) - mean**2) < 0
    )  # the literal formula does fall below zero
    updates = [{"running_mean": own, "running_var": np.zeros(500)} for own in means]
    assert np.min(pooled_statistics(updates, [1] * 5)["running_var"]) >= 0


@pytest.mark.parametrize("average", [weighted_mean, pooled_statistics])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_averages_keep_types_and_shapes(average: object, dtype: type) -> None:
    shape = (2, 3)
    updates = [
        {"running_mean": np.full(shape, value, dtype), "running_var": np.ones(shape, dtype)}
        for value in (1, 2)
    ]
    for array in average(updates, [1, 1]).values():  # type: ignore[operator]
        assert array.dtype == dtype
        assert array.shape == shape


def test_zero_dimensional_arrays_stay_arrays_that_flower_accepts() -> None:
    average = weighted_mean([{"scale": np.asarray(np.float32(v))} for v in (1, 2)], [1, 1])
    assert isinstance(average["scale"], np.ndarray)
    FlowerArray(average["scale"])
    assert average["scale"] == np.float32(1.5)


def test_sums_are_rounded_only_once() -> None:
    """In float32, 1e8 + 1 + 1 + ... stays 1e8."""
    updates = [{"w": np.float32([1e8])}, *[{"w": np.float32([1])}] * 99]
    assert_array_equal(weighted_mean(updates, [1] * 100)["w"], np.float32([1e6 + 0.99]))


def test_weights_are_relative() -> None:
    updates = [{"w": np.float64([1])}, {"w": np.float64([2])}]
    assert weighted_mean(updates, [10, 30])["w"] == weighted_mean(updates, [0.25, 0.75])["w"]


def test_merged_counters_are_the_largest_and_stay_int64() -> None:
    name = "num_batches_tracked"
    merged = merged_counters([{name: np.asarray(np.int64(n))} for n in (3, 5, 4)])
    assert merged[name].dtype == np.int64
    assert merged[name].shape == ()
    FlowerArray(merged[name])
    layer = torch.nn.BatchNorm1d(2)
    layer.load_state_dict({**layer.state_dict(), name: torch.from_numpy(merged[name])})
    assert layer.num_batches_tracked == 5
    assert layer.num_batches_tracked.dtype == torch.int64


def test_no_input_is_changed() -> None:
    updates = [{"w": np.float32([1, 2])}, {"w": np.float32([3, 4])}]
    weighted_mean(updates, WEIGHTS)
    assert_array_equal(updates[0]["w"], [1, 2])
    assert_array_equal(updates[1]["w"], [3, 4])


def test_the_variance_of_a_layer_without_a_mean_is_averaged() -> None:
    """EvoNorm keeps a running variance alone; another mean of that name may have another shape."""
    alone = [{"a.running_var": np.float64([v])} for v in (1, 2)]
    others = [{**a, "a.running_mean": np.zeros(3)} for a in alone]
    for updates in (alone, others):
        assert_array_equal(pooled_statistics(updates, WEIGHTS)["a.running_var"], [1.75])


@pytest.mark.parametrize(
    ("before", "after", "spoilt"),
    [
        ([0, 1], [0, np.nan], True),
        ([0, 1], [0, np.inf], True),
        ([0, -np.inf], [0, -np.inf], False),
        ([0, -np.inf], [0, np.nan], True),  # what FedAdam makes of a mask
        ([0, np.nan], [0, np.nan], False),
    ],
)
def test_infinity_by_design_is_allowed_and_nan_in_its_place_is_not(
    before: list[float], after: list[float], spoilt: bool
) -> None:
    found = first_spoilt({"mask": np.float32(after)}, {"mask": np.float32(before)})
    assert found == ("mask" if spoilt else None)


def test_complex_momentum_keeps_its_imaginary_part() -> None:
    average = weighted_mean([{"w": np.complex64([1j])}, {"w": np.complex64([4 + 1j])}], WEIGHTS)
    assert_array_equal(average["w"], np.complex64([3 + 1j]))
