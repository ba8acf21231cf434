"""Turn the usable replies of a round into the new global model."""

from __future__ import annotations

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fixbn_flwr.array_records import arrays_of, record_of
from fixbn_flwr.flower_compat import make_message
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.server.failed_rounds import FailedAggregation
from fixbn_flwr.server.global_model import GlobalModel
from fixbn_flwr.server.inner_strategy import InnerStrategy
from fixbn_flwr.server.inner_strategy_state import attributes_of, put_back
from fixbn_flwr.server.reply_collection import Selection


def aggregate(
    server_round: int,
    selection: Selection[int, Message, RecordDict],
    model: GlobalModel,
    inner: InnerStrategy,
    state: ServerState,
) -> tuple[ArrayRecord | None, MetricRecord | None, FailedAggregation | None]:
    """Let the inner strategy average the parameters, and average the rest here.

    Args:
        server_round: The round, counted from 1.
        selection: The usable replies, at least one.
        model: The global model at the start of the round.
        inner: The inner strategy. Without a new model its attributes stay as they were.
        state: Ends its round, unless there is no new model.

    Returns:
        The new global model or None, the inner strategy's metrics, and why there is no new model.
    """
    before = attributes_of(inner.layers)
    parameters, metrics = inner.layers[0].aggregate_train(
        server_round, _replies_for_inner(selection, inner, state)
    )
    if parameters is None:
        failure = FailedAggregation.without_model(inner.layers[0], len(selection.usable))
        return None, metrics, failure
    momentum = state.global_momentum
    defended = _others(parameters, model) if inner.defends else None
    rest = state.end_round(selection.updates, model.rest, defended=defended)
    whole = model.joined(parameters, rest)
    if (name := model.first_spoilt(whole)) is not None:
        state.global_momentum = momentum
        put_back(inner.layers, before)  # its own momentum would stay infinite
        return None, metrics, FailedAggregation.not_finite(inner.layers[0], name)
    return whole, metrics, None


def _replies_for_inner(
    selection: Selection[int, Message, RecordDict], inner: InnerStrategy, state: ServerState
) -> list[Message]:
    """Return the usable replies with what the inner strategy may see of them."""
    replies = []
    for reply, checked in selection.usable.values():
        content = checked.content
        if inner.defends:
            ((key, parameters),) = content.array_records.items()
            others = record_of(state.to_defend(checked.update))
            content[str(key)] = ArrayRecord({**parameters, **others})
        replies.append(make_message(metadata=reply.metadata, content=content))
    return replies


def _others(aggregated: ArrayRecord, model: GlobalModel) -> dict[str, Array]:
    """Return what a defending strategy made of the arrays that are no parameters."""
    names = aggregated.keys() - model.parameters.keys()
    return {name: array for name, array in arrays_of(aggregated).items() if name in names}
