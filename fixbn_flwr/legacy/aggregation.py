"""Turn the usable results of a round into the new global model, in the older generation."""

from __future__ import annotations

from collections.abc import Sequence

from flwr.common import FitRes, Parameters, Scalar, ndarrays_to_parameters

from fixbn_flwr.flower_compat import ClientProxy
from fixbn_flwr.legacy.model_view import PositionedView
from fixbn_flwr.method.averaging import first_spoilt
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.server.failed_rounds import FailedAggregation
from fixbn_flwr.server.inner_strategy import InnerStrategy
from fixbn_flwr.server.inner_strategy_state import attributes_of, put_back
from fixbn_flwr.server.reply_collection import Selection


def aggregate(
    server_round: int,
    accepted: Sequence[tuple[ClientProxy, FitRes]],
    rejected: Sequence[tuple[ClientProxy, FitRes] | BaseException],
    selection: Selection[str, FitRes, FitRes],
    view: PositionedView,
    inner: InnerStrategy,
    state: ServerState,
) -> tuple[Parameters | None, dict[str, Scalar], FailedAggregation | None]:
    """Let the inner strategy average the parameters, and average the rest here.

    Args:
        server_round: The round, counted from 1.
        accepted: The usable results, at least one.
        rejected: The failures to pass to the inner strategy.
        selection: The usable results by client.
        view: The global model at the start of the round.
        inner: The inner strategy. Without a new model its attributes stay as they were.
        state: FixBN's rules. They end their round, unless there is no new model.

    Returns:
        The new global model or None, the inner strategy's metrics, and why there is no new model.
    """
    strategy, before = inner.layers[0], attributes_of(inner.layers)
    momentum = state.global_momentum
    view.begin_aggregation(selection.checked)
    results = [(client, view.flower_result(client.cid, result)) for client, result in accepted]
    parameters, metrics = strategy.aggregate_fit(server_round, results, list(rejected))
    if parameters is None:
        state.global_momentum = momentum
        failure = FailedAggregation.without_model(
            strategy, len(accepted), flower_failed=view.flower_failed
        )
        return None, metrics, failure
    whole = view.new_model(parameters)
    arrays = view.current.arrays
    spoilt = first_spoilt(dict(zip(arrays, whole, strict=True)), arrays)
    if spoilt is not None:
        state.global_momentum = momentum
        put_back(inner.layers, before)  # its own momentum would stay infinite
        return None, metrics, FailedAggregation.not_finite(strategy, spoilt)
    return ndarrays_to_parameters(whole), metrics, None
