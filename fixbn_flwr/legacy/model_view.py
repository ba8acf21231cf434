"""The older generation's model and results in two views, as ``fixbn_flwr.server.model_view``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flwr.common import (
    FitRes,
    NDArrays,
    Parameters,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)

from fixbn_flwr.legacy.global_model import PositionedModel
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.method.update import Update
from fixbn_flwr.server.inserted_classes import RunningCode
from fixbn_flwr.server.reply_collection import CheckedReply

Results = Mapping[str, CheckedReply[FitRes]]


class PositionedView:
    """The global model and the usable results of a round.

    Args:
        state: FixBN's rules, which average what Flower's code does not see.
        defends: Whether Flower's code must see the statistics and momentum buffers too.

    Attributes:
        model: The global model at the start of the round; None before the first.
        flower_failed: Whether Flower's code under a user's class made no model of the results.
        code: Whose code runs.
    """

    def __init__(self, state: ServerState, *, defends: bool) -> None:
        self.model: PositionedModel | None = None
        self._state = state
        self._defends = defends
        self._results: Results = {}
        self._averaged: list[Update] = []
        self.flower_failed = False
        self.code = RunningCode()
        self._others: NDArrays | None = None

    @property
    def current(self) -> PositionedModel:
        """The global model, in a round."""
        assert self.model is not None
        return self.model

    def begin_aggregation(self, results: Results) -> None:
        """Take the usable results of the round by client, in the order of their sums."""
        self._results = results
        self._averaged = [checked.update for checked in results.values()]
        self._others = None
        self.flower_failed = False

    def flower_result(self, client: str, result: FitRes) -> FitRes:
        """Return a result with what Flower's code may see of it."""
        arrays = self.current.parameters_of(parameters_to_ndarrays(result.parameters))
        if self._defends:
            arrays += self._state.to_defend(self._results[client].update).values()
        return _with_arrays(result, arrays)

    def whole_result(self, client: str, result: FitRes) -> FitRes:
        """Return what Flower's code saw of a result as a whole result."""
        # What defends sees more than parameters, which may be as many arrays as a whole model.
        parameters = parameters_to_ndarrays(result.parameters)[: len(self.current.parameters)]
        rest = self._results[client].update.arrays
        return _with_arrays(result, self.current.joined(parameters, rest))

    def whole_model(
        self, aggregated: Parameters | None, results: Mapping[str, FitRes]
    ) -> Parameters | None:
        """Return the whole model for what Flower's code made of these results, by client."""
        if aggregated is None:
            self.flower_failed = True
            return None
        # With the weights that Flower's code saw, which the user's code may have changed.
        self._averaged = [
            replace(checked.update, weight=results[client].num_examples)
            for client, checked in self._results.items()
            if client in results
        ]
        arrays = parameters_to_ndarrays(aggregated)
        self._others = arrays[len(self.current.parameters) :]
        return ndarrays_to_parameters(self._joined(arrays))

    def flower_model(self, returned: Parameters | None) -> Parameters | None:
        """Return what Flower's code may see of the model that the user's code returned."""
        if returned is None:
            return None
        arrays = parameters_to_ndarrays(returned)
        if len(arrays) != len(self.current.arrays):
            return returned
        others = self._others if self._others is not None else self._defended_of(arrays)
        return ndarrays_to_parameters(
            self.current.parameters_of(arrays) + (others if self._defends else [])
        )

    def new_model(self, aggregated: Parameters) -> NDArrays:
        """Return the whole new model for what the inner strategy returned."""
        return self._joined(parameters_to_ndarrays(aggregated))

    def _joined(self, arrays: NDArrays) -> NDArrays:
        number = len(self.current.parameters)
        defended: dict[str, Array] | None = None
        if self._defends:
            names = self._state.to_defend(self._averaged[0])
            defended = dict(zip(names, arrays[number:], strict=False))
        rest = self._state.end_round(self._averaged, self.current.rest, defended=defended)
        return self.current.joined(arrays[:number], rest)

    def _defended_of(self, arrays: NDArrays) -> NDArrays:
        named = dict(zip(self.current.arrays, arrays, strict=True))
        names = self._state.to_defend(self._averaged[0])
        return [named[name] for name in names if name in named]


def _with_arrays(result: FitRes, arrays: NDArrays) -> FitRes:
    parameters = ndarrays_to_parameters(arrays)
    return FitRes(result.status, parameters, result.num_examples, result.metrics)
