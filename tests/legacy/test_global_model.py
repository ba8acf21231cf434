"""The older generation's list of arrays, under names and in its two parts."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.legacy.global_model import PositionedModel

NAMES = ["w", "n.running_mean", "b", "n.num_batches_tracked"]


def model() -> PositionedModel:
    arrays = [np.float32([1, 2]), np.float32([3]), np.float32([4]), np.asarray(5)]
    return PositionedModel(NAMES, ndarrays_to_parameters(arrays))


def test_the_two_parts() -> None:
    whole = model()
    assert list(whole.parameters) == ["w", "b"]
    assert list(whole.rest) == ["n.running_mean", "n.num_batches_tracked"]
    assert [a.tolist() for a in parameters_to_ndarrays(whole.shown)] == [[1, 2], [4]]


def test_joined_in_the_models_order_and_types() -> None:
    joined = model().joined([np.float64([7, 8]), np.float64([9])], model().rest)
    assert [array.tolist() for array in joined] == [[7, 8], [3], [9], 5]
    assert [str(array.dtype) for array in joined] == ["float32", "float32", "float32", "int64"]


def test_a_model_for_all_clients_is_joined_once() -> None:
    whole = model()
    other = ndarrays_to_parameters([np.float32([7, 8]), np.float32([9])])
    as_it_came, first, second = whole.wholes([whole.shown, other, other])
    assert as_it_came is whole.record
    assert first is second
    assert [a.tolist() for a in parameters_to_ndarrays(first)] == [[7, 8], [3], [9], 5]


def test_another_number_of_arrays_than_names_is_named() -> None:
    with pytest.raises(ConfigError, match="has 1 arrays and parameter_names has 4 names"):
        PositionedModel(NAMES, ndarrays_to_parameters([np.float32([1])]))
