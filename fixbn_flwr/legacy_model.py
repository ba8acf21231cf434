"""The older generation's global model: a list of arrays, put under names and into its two parts.

The counterpart of :mod:`fixbn_flwr.global_model`. Arrays travel as a list there, in the order of
the model's state dict; the names that the user gave tell parameters from statistics and counters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.common import NDArrays, Parameters, ndarrays_to_parameters, parameters_to_ndarrays

from fixbn_flwr.averaging import Array, Arrays, Kind, of_kind
from fixbn_flwr.errors import ConfigError


class PositionedModel:
    """A model's arrays, as the server has them at the start of a round.

    Args:
        names: the arrays' names, in the order of the list.
        arrays: the list.

    Attributes:
        arrays: all of them, by name.
        parameters: those that the wrapped strategy may see, by name.
        rest: statistics and counters, by name.

    Raises:
        ConfigError: there are not as many arrays as names.
    """

    def __init__(self, names: Sequence[str], arrays: NDArrays) -> None:
        if len(arrays) != len(names):
            raise ConfigError(
                f"the global model has {len(arrays)} arrays and parameter_names has {len(names)} "
                "names: give the names of what clients and initial_parameters send, "
                "list(model.state_dict()) for [array.numpy() for array in "
                "model.state_dict().values()]."
            )
        self.arrays = dict(zip(names, arrays, strict=True))
        self.parameters = of_kind(self.arrays, Kind.PARAMETER)
        self.rest = of_kind(self.arrays, Kind.STATISTIC, Kind.COUNTER)

    def joined(self, parameters: Sequence[Array], rest: Arrays) -> NDArrays:
        """Join both parts to a whole model of the same order and types."""
        parts = {**rest, **dict(zip(self.parameters, parameters, strict=True))}
        # Flower's FedAdam, for one, turns float32 into float64.
        return [np.asarray(parts[name]).astype(a.dtype) for name, a in self.arrays.items()]

    def whole(self, parameters: Parameters) -> Parameters:
        """Return the whole model with these parameters in place of its own."""
        return ndarrays_to_parameters(self.joined(parameters_to_ndarrays(parameters), self.rest))
