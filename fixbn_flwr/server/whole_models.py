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
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, SupportsIndex

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fixbn_flwr.server.model_view import ModelView


def show_whole_models(strategy: Strategy, view: ModelView) -> None:
    """Give a strategy of the user's own class whole models; leave one of Flower's as it is."""
    put_classes_around(strategy, lambda own: _above(own, view), lambda base: _below(base, view))


def put_classes_around(
    strategy: Any, above: Callable[[type], type], below: Callable[[type], type]
) -> None:
    """Put a class above the user's class and one below it; leave Flower's classes as they are.

    Args:
        strategy: A strategy of either generation. Its class changes.
        above: Returns a subclass of the user's class.
        below: Returns a subclass of the Flower class that the user's class inherits from.
    """
    # A strategy that was inside another FixBN has the classes of that one around its own.
    own_class: type = getattr(strategy, "class_of_the_user", type(strategy))
    flowers = next(c for c in own_class.__mro__ if c.__module__.split(".")[0] == "flwr")
    if flowers is own_class:
        return

    def reduce_as_own_class(self: object, protocol: SupportsIndex) -> Any:
        # Pickle finds the user's class by its name, but not the one made here.
        reduced: Any = object.__reduce_ex__(self, protocol)
        return (_new, (own_class,), *reduced[2:])

    members: dict[str, Any] = {"__module__": own_class.__module__, "class_of_the_user": own_class}
    if "__reduce_ex__" not in {name for c in own_class.__mro__[:-1] for name in vars(c)}:
        members["__reduce_ex__"] = reduce_as_own_class
    strategy.__class__ = type(own_class.__name__, (above(own_class), below(flowers)), members)


def _new(own_class: Any) -> Any:
    return own_class.__new__(own_class)


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

        def configure_evaluate(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            parameters = view.parameters(arrays)
            messages = list(super().configure_evaluate(server_round, parameters, config, grid))
            view.put_into(messages)
            return messages

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            replies = list(replies)
            shown = [view.flower_reply(reply) for reply in replies]
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
                server_round, view.model.record, config, grid
            )
            return messages

        def configure_evaluate(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            messages: Iterable[Message] = super().configure_evaluate(
                server_round, view.model.record, config, grid
            )
            return messages

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            whole = [view.whole_reply(reply) for reply in replies]
            arrays, metrics = super().aggregate_train(server_round, whole)
            return view.flower_model(arrays), metrics

    return Above
