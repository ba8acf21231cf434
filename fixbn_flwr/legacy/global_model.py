"""The older generation's global model: a list of arrays, put under names and into its two parts.

The counterpart of :mod:`fixbn_flwr.server.global_model`. Arrays travel as a list there, in the order of
the model's state dict; the names that the user gave tell parameters from statistics and counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from flwr.common import NDArrays, Parameters, ndarrays_to_parameters, parameters_to_ndarrays

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.averaging import Array, Arrays, Kind, of_kind


class PositionedModel:
    """A model's arrays, as the server has them at the start of a round.

    Args:
        names: the arrays' names, in the order of the list.
        record: the list, as it came.

    Attributes:
        record: the whole model as it came.
        arrays: all of them, by name.
        parameters: those that the wrapped strategy may see, by name.
        shown: the same, as it gets them.
        rest: statistics and counters, by name.

    Raises:
        ConfigError: there are not as many arrays as names.
    """

    def __init__(self, names: Sequence[str], record: Parameters) -> None:
        arrays = parameters_to_ndarrays(record)
        if len(arrays) != len(names):
            raise ConfigError(
                f"the global model has {len(arrays)} arrays and parameter_names has {len(names)} "
                "names: give the names of what clients and initial_parameters send, "
                "list(model.state_dict()) for [array.numpy() for array in "
                "model.state_dict().values()]."
            )
        self.record = record
        self.arrays = dict(zip(names, arrays, strict=True))
        self.parameters = of_kind(self.arrays, Kind.PARAMETER)
        self.shown = ndarrays_to_parameters(list(self.parameters.values()))
        self.rest = of_kind(self.arrays, Kind.STATISTIC, Kind.COUNTER)

    def joined(self, parameters: Sequence[Array], rest: Arrays) -> NDArrays:
        """Join both parts to a whole model of the same order and types."""
        parts = {**rest, **dict(zip(self.parameters, parameters, strict=True))}
        # Flower's FedAdam, for one, turns float32 into float64.
        return [np.asarray(parts[name]).astype(a.dtype) for name, a in self.arrays.items()]

    def wholes(self, instructed: Iterable[Parameters]) -> list[Parameters]:
        """Return, for each client's parameters, the whole model with them in place of its own."""
        listed = list(instructed)
        # Flower's strategies give all clients one model: it is joined once, or is as it came.
        of_object = {id(self.shown): self.record}
        for parameters in listed:
            if id(parameters) not in of_object:
                arrays = self.joined(parameters_to_ndarrays(parameters), self.rest)
                of_object[id(parameters)] = ndarrays_to_parameters(arrays)
        return [of_object[id(parameters)] for parameters in listed]
