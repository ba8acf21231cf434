"""Let a user's strategy see whole models where Flower's own code sees parameters only.

A common pattern is a subclass of FedAvg that saves the model in ``aggregate_train``:

    class Saving(FedAvg):
        def aggregate_train(self, server_round, replies):
            arrays, metrics = super().aggregate_train(server_round, replies)
            save(arrays)
            return arrays, metrics

Flower's averaging must not touch statistics, and the user's file must have them. So this
module inserts two classes: one between the user's class and Flower's, which shows Flower's code
parameters only and completes what it returns, and one above the user's, which does the opposite.
A strategy of the user's may also wrap one of Flower's (``.strategy``). Then the first class goes
around that one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.common import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fixbn_flwr.server.inserted_classes import put_classes_around
from fixbn_flwr.server.model_view import ModelView

Aggregated = tuple[ArrayRecord | None, MetricRecord | None]


def show_whole_models(layers: Iterable[Strategy], view: ModelView) -> None:
    """Give strategies of the user's own classes whole models, and Flower's inside them parameters.

    Args:
        layers: The inner strategy and those that it wraps in turn.
        view: The model and the replies of a round.
    """
    put_classes_around(layers, lambda own: _above(own, view), lambda base: _below(base, view))


def _below(flowers: Any, view: ModelView) -> type[Strategy]:
    """Return a class between the user's and Flower's: it shows Flower's code parameters."""

    class Below(flowers):  # type: ignore[misc]
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            parameters = view.parameters(arrays)
            messages = list(super().configure_train(server_round, parameters, config, grid))
            view.put_into(messages)
            return messages

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Aggregated:
            if not view.code.is_users:  # the layer outside is Flower's, and sees parameters
                aggregated: Aggregated = super().aggregate_train(server_round, replies)
                return aggregated
            replies = list(replies)
            shown = [view.flower_reply(reply) for reply in replies]
            with view.code.switched(users=False):
                arrays, metrics = super().aggregate_train(server_round, shown)
            return view.whole_model(arrays, replies), metrics

    return Below


def _above(own_class: Any, view: ModelView) -> type[Strategy]:
    """Return a class above the user's: it shows the user's code whole models."""

    class Above(own_class):  # type: ignore[misc]
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            messages: Iterable[Message] = super().configure_train(
                server_round, view.model.whole(arrays), config, grid
            )
            return messages

        def configure_evaluate(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            messages: Iterable[Message] = super().configure_evaluate(
                server_round, view.model.whole(arrays), config, grid
            )
            return messages

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Aggregated:
            if view.code.is_users:  # the layer outside is the user's too, and sees whole models
                aggregated: Aggregated = super().aggregate_train(server_round, replies)
                return aggregated
            whole = [view.whole_reply(reply) for reply in replies]
            with view.code.switched(users=True):
                arrays, metrics = super().aggregate_train(server_round, whole)
            return view.flower_model(arrays), metrics

    return Above
