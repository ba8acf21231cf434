"""Turn the usable replies of a round into the new global model."""

from __future__ import annotations

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fixbn_flwr.flower_compat import make_message
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.server.failed_rounds import FailedAggregation
from fixbn_flwr.server.inner_strategy import InnerStrategy
from fixbn_flwr.server.inner_strategy_state import attributes_of, put_back
from fixbn_flwr.server.model_view import ModelView
from fixbn_flwr.server.reply_collection import Selection


def aggregate(
    server_round: int,
    selection: Selection[int, Message, RecordDict],
    view: ModelView,
    inner: InnerStrategy,
    state: ServerState,
) -> tuple[ArrayRecord | None, MetricRecord | None, FailedAggregation | None]:
    """Let the inner strategy average the parameters, and average the rest here.

    Args:
        server_round: The round, counted from 1.
        selection: The usable replies, at least one, and the errors of the other clients.
        view: The global model at the start of the round.
        inner: The inner strategy. Without a new model its attributes stay as they were.
        state: FixBN's rules. They end their round, unless there is no new model.

    Returns:
        The new global model or None, the inner strategy's metrics, and why there is no new model.
    """
    strategy, before = inner.layers[0], attributes_of(inner.layers)
    momentum = state.global_momentum
    view.begin_aggregation(selection.checked)
    replies = [
        view.flower_reply(make_message(metadata=reply.metadata, content=checked.content))
        for reply, checked in selection.usable.values()
    ]
    replies += selection.errors
    parameters, metrics = strategy.aggregate_train(server_round, replies)
    if parameters is None:
        state.global_momentum = momentum
        failure = FailedAggregation.without_model(
            strategy, len(selection.usable), flower_failed=view.flower_failed
        )
        return None, metrics, failure
    whole = view.new_model(parameters)
    if (name := view.model.first_spoilt(whole)) is not None:
        state.global_momentum = momentum
        put_back(inner.layers, before)  # its own momentum would stay infinite
        return None, metrics, FailedAggregation.not_finite(strategy, name)
    return whole, metrics, None
