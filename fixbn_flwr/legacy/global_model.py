"""The older generation's global model: a list of arrays, with names and in two parts.

The counterpart of :mod:`fixbn_flwr.server.global_model`. In this generation arrays travel as a list
in the order of the model's state dict. The names that the user gave identify statistics and
counters.
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
        names: The arrays' names, in the order of the list.
        record: The list, as it came.

    Attributes:
        record: The whole model as it came.
        arrays: All arrays by name.
        parameters: The arrays that the inner strategy may see, by name.
        shown: The same, as Flower's ``Parameters``.
        rest: Statistics and counters, by name.

    Raises:
        ConfigError: If the numbers of arrays and names differ.
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
        """Return the whole model, in the same order and types, from new parts.

        Raises:
            ConfigError: If a parameter has another shape.
        """
        parts = {**rest, **dict(zip(self.parameters, parameters, strict=True))}
        for name, own in self.parameters.items():
            if np.shape(parts[name]) != own.shape:
                raise ConfigError(
                    f"the strategy's model has {name!r} with shape {np.shape(parts[name])} instead "
                    f"of {own.shape}: aggregate_fit must return all arrays in the order in which "
                    "clients send them."
                )
        # Some strategies, such as FedAdam, turn float32 into float64.
        return [np.asarray(parts[name]).astype(a.dtype) for name, a in self.arrays.items()]

    def parameters_of(self, arrays: Sequence[Array]) -> NDArrays:
        """Return the parameters of a whole model's arrays, or the first arrays of another list."""
        if len(arrays) == len(self.arrays):
            named = dict(zip(self.arrays, arrays, strict=True))
            return [named[name] for name in self.parameters]
        return list(arrays[: len(self.parameters)])

    def cut(self, model: Parameters) -> Parameters:
        """Return the parameters of a whole model; anything else as it is."""
        if model is self.record:
            return self.shown
        if len(model.tensors) != len(self.arrays):
            return model
        return ndarrays_to_parameters(self.parameters_of(parameters_to_ndarrays(model)))

    def whole(self, model: Parameters) -> Parameters:
        """Return parameters with this model's statistics; anything else as it is."""
        if model is self.shown:
            return self.record
        if len(model.tensors) != len(self.parameters):
            return model
        return ndarrays_to_parameters(self.joined(parameters_to_ndarrays(model), self.rest))

    def wholes(self, instructed: Iterable[Parameters]) -> list[Parameters]:
        """Return, for each client's parameters, the whole model with them in place of its own."""
        listed = list(instructed)
        # Flower's strategies give all clients the same object, which is joined only once.
        of_object = {id(self.shown): self.record, id(self.record): self.record}
        for parameters in listed:
            if id(parameters) not in of_object:
                own = self.parameters_of(parameters_to_ndarrays(parameters))
                of_object[id(parameters)] = ndarrays_to_parameters(self.joined(own, self.rest))
        return [of_object[id(parameters)] for parameters in listed]


def checked_names(names: Sequence[str]) -> list[str]:
    """Return the names as a list.

    Raises:
        ConfigError: If they do not name each array once.
    """
    listed = [] if isinstance(names, str) else list(names)
    if not listed or not all(isinstance(n, str) for n in listed) or len({*listed}) < len(listed):
        raise ConfigError(
            f"parameter_names={names!r} must name each of the model's arrays once, in the order in "
            "which clients send them: give list(model.state_dict())."
        )
    return listed
