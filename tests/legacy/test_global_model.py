"""The older generation's list of arrays with names, split into parameters and the rest."""

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


def test_a_model_is_split_into_parameters_and_the_rest() -> None:
    positioned = model()
    assert list(positioned.parameters) == ["w", "b"]
    assert list(positioned.rest) == ["n.running_mean", "n.num_batches_tracked"]
    assert [a.tolist() for a in parameters_to_ndarrays(positioned.shown)] == [[1, 2], [4]]


def test_parts_are_joined_in_the_models_order_and_types() -> None:
    joined = model().joined([np.float64([7, 8]), np.float64([9])], model().rest)
    assert [array.tolist() for array in joined] == [[7, 8], [3], [9], 5]
    assert [str(array.dtype) for array in joined] == ["float32", "float32", "float32", "int64"]


def test_parameters_in_another_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"has 'w' with shape \(1,\) instead of \(2,\)"):
        model().joined([np.float32([9]), np.float32([7, 8])], model().rest)


def test_a_model_for_all_clients_is_joined_only_once() -> None:
    positioned = model()
    other = ndarrays_to_parameters([np.float32([7, 8]), np.float32([9])])
    unchanged, first, second = positioned.wholes([positioned.shown, other, other])
    assert unchanged is positioned.record
    assert first is second
    assert [a.tolist() for a in parameters_to_ndarrays(first)] == [[7, 8], [3], [9], 5]


def test_a_mismatch_of_arrays_and_names_fails() -> None:
    with pytest.raises(ConfigError, match="has 1 arrays and parameter_names has 4 names"):
        PositionedModel(NAMES, ndarrays_to_parameters([np.float32([1])]))
