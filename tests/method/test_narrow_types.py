from __future__ import annotations

import numpy as np
import pytest
import torch

from fixbn_flwr.method.narrow_types import is_same_or_rounded

NARROW = [torch.bfloat16, torch.float16]


def statistics(dtype: type[np.floating] = np.float32) -> np.ndarray:
    """Return values of all sizes, with ties between two neighbours in bfloat16 among them."""
    values = np.random.default_rng(0).normal(size=1000) * np.logspace(-9, 4, 1000)
    ties = [1 + 1 / 256, 1 + 3 / 256, -1 - 1 / 256, 0.0]
    return np.append(values, ties).astype(dtype)


def loaded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return what a model of a type holds after loading the values."""
    model = torch.nn.BatchNorm1d(len(values)).to(dtype)
    assert model.running_mean is not None
    model.running_mean.copy_(torch.from_numpy(values))
    return model.running_mean.float().numpy().astype(values.dtype)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_what_torch_rounds_on_loading_is_the_same(
    wide: type[np.floating], dtype: torch.dtype
) -> None:
    sent = statistics(wide)
    returned = loaded(sent, dtype)
    assert not np.array_equal(returned, sent)
    assert is_same_or_rounded(returned, sent)


def test_float32_models_may_be_sent_float64() -> None:
    sent = statistics(np.float64)
    assert is_same_or_rounded(loaded(sent, torch.float32), sent)


@pytest.mark.parametrize("dtype", NARROW)
def test_one_value_that_moved_by_one_step_is_a_change(dtype: torch.dtype) -> None:
    sent = statistics()
    returned = loaded(sent, dtype)
    held = torch.tensor(returned[-4]).to(dtype)
    returned[-4] = (held.view(torch.int16) + 1).view(dtype).float()
    assert not is_same_or_rounded(returned, sent)


def test_values_rounded_by_different_types_are_a_change() -> None:
    sent = statistics()
    mixed = np.append(loaded(sent, NARROW[0])[:500], loaded(sent, NARROW[1])[500:])
    assert not is_same_or_rounded(mixed, sent)


def test_values_of_other_kinds_must_be_equal() -> None:
    sent = np.array([1 + 2j], np.complex64)
    assert is_same_or_rounded(sent.copy(), sent)
    assert not is_same_or_rounded(sent + 1, sent)
