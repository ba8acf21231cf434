"""Turn the usable results of a round into the new global model, in the older generation."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.common import (
    FitRes,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)

from fixbn_flwr.flower_compat import ClientProxy
from fixbn_flwr.legacy.global_model import PositionedModel
from fixbn_flwr.method.averaging import Array, first_spoilt
from fixbn_flwr.method.server_rules import ServerState, Update
from fixbn_flwr.server.failed_rounds import FailedAggregation
from fixbn_flwr.server.inner_strategy import InnerStrategy
from fixbn_flwr.server.inner_strategy_state import attributes_of, put_back


def aggregate(
    server_round: int,
    accepted: Sequence[tuple[ClientProxy, FitRes]],
    rejected: Sequence[tuple[ClientProxy, FitRes] | BaseException],
    updates: Sequence[Update],
    model: PositionedModel,
    inner: InnerStrategy,
    state: ServerState,
) -> tuple[Parameters | None, dict[str, Scalar], FailedAggregation | None]:
    """Let the inner strategy average the parameters, and average the rest here.

    Args:
        server_round: The round, counted from 1.
        accepted: The usable results, at least one, as the inner strategy may see them.
        rejected: The failures that the inner strategy is told.
        updates: What FixBN averages itself, one update per usable result.
        model: The global model at the start of the round.
        inner: The inner strategy. Without a new model its attributes stay as they were.
        state: Ends its round, unless there is no new model.

    Returns:
        The new global model or None, the inner strategy's metrics, and why there is no new model.
    """
    strategy, before = inner.layers[0], attributes_of(inner.layers)
    results = [
        (client, _for_inner(r, u, inner, state))
        for (client, r), u in zip(accepted, updates, strict=True)
    ]
    parameters, metrics = strategy.aggregate_fit(server_round, results, list(rejected))
    if parameters is None:
        return None, metrics, FailedAggregation.without_model(strategy, len(accepted))
    arrays = parameters_to_ndarrays(parameters)
    number = len(model.parameters)
    defended: dict[str, Array] | None = None
    if inner.defends:
        defended = dict(zip(state.to_defend(updates[0]), arrays[number:], strict=True))
    momentum = state.global_momentum
    rest = state.end_round(updates, model.rest, defended=defended)
    whole = model.joined(arrays[:number], rest)
    spoilt = first_spoilt(dict(zip(model.arrays, whole, strict=True)), model.arrays)
    if spoilt is not None:
        state.global_momentum = momentum
        put_back(inner.layers, before)  # its own momentum would stay infinite
        return None, metrics, FailedAggregation.not_finite(strategy, spoilt)
    return ndarrays_to_parameters(whole), metrics, None


def _for_inner(result: FitRes, update: Update, inner: InnerStrategy, state: ServerState) -> FitRes:
    """Return a result with what the inner strategy may see of it."""
    if not inner.defends:
        return result
    arrays = [*parameters_to_ndarrays(result.parameters), *state.to_defend(update).values()]
    parameters = ndarrays_to_parameters(arrays)
    return FitRes(result.status, parameters, result.num_examples, result.metrics)
