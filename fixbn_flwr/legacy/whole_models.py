"""Let a user's older strategy see whole models, as ``fixbn_flwr.server.whole_models`` does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.common import EvaluateIns, FitIns, FitRes, Parameters, Scalar
from flwr.server import ClientManager
from flwr.server.strategy import Strategy

from fixbn_flwr.flower_compat import ClientProxy
from fixbn_flwr.legacy.model_view import PositionedView
from fixbn_flwr.server.inserted_classes import put_classes_around

Fits = list[tuple[ClientProxy, FitIns]]
Evaluations = list[tuple[ClientProxy, EvaluateIns]]
Results = list[tuple[ClientProxy, FitRes]]
Failures = list[tuple[ClientProxy, FitRes] | BaseException]
Aggregated = tuple[Parameters | None, dict[str, Scalar]]


def show_whole_models(layers: Iterable[Strategy], view: PositionedView) -> None:
    """Give strategies of the user's own classes whole models, and Flower's inside them parameters.

    Args:
        layers: The inner strategy and those that it wraps in turn.
        view: The model and the results of a round.
    """
    put_classes_around(layers, lambda own: _above(own, view), lambda base: _below(base, view))


def _below(flowers: Any, view: PositionedView) -> type[Strategy]:
    """Return a class between the user's and Flower's: it shows Flower's code parameters."""

    class Below(flowers):  # type: ignore[misc]
        def configure_fit(
            self, server_round: int, parameters: Parameters, client_manager: ClientManager
        ) -> Fits:
            shown = view.current.cut(parameters)
            fits = super().configure_fit(server_round, shown, client_manager)
            wholes = view.current.wholes(fit.parameters for _, fit in fits)
            return [
                (client, FitIns(whole, fit.config))
                for (client, fit), whole in zip(fits, wholes, strict=True)
            ]

        def aggregate_fit(
            self, server_round: int, results: Results, failures: Failures
        ) -> Aggregated:
            if not view.code.is_users:  # the layer outside is Flower's, and sees parameters
                aggregated: Aggregated = super().aggregate_fit(server_round, results, failures)
                return aggregated
            shown = [(client, view.flower_result(client.cid, fit)) for client, fit in results]
            with view.code.switched(users=False):
                parameters, metrics = super().aggregate_fit(server_round, shown, failures)
            averaged = {client.cid: fit for client, fit in results}
            return view.whole_model(parameters, averaged), metrics

    return Below


def _above(own_class: Any, view: PositionedView) -> type[Strategy]:
    """Return a class above the user's: it shows the user's code whole models."""

    class Above(own_class):  # type: ignore[misc]
        def configure_fit(
            self, server_round: int, parameters: Parameters, client_manager: ClientManager
        ) -> Fits:
            whole = view.current.whole(parameters)
            fits: Fits = super().configure_fit(server_round, whole, client_manager)
            return fits

        def configure_evaluate(
            self, server_round: int, parameters: Parameters, client_manager: ClientManager
        ) -> Evaluations:
            whole = view.current.whole(parameters)
            evaluations: Evaluations = super().configure_evaluate(
                server_round, whole, client_manager
            )
            return evaluations

        def aggregate_fit(
            self, server_round: int, results: Results, failures: Failures
        ) -> Aggregated:
            if view.code.is_users:  # the layer outside is the user's too, and sees whole models
                aggregated: Aggregated = super().aggregate_fit(server_round, results, failures)
                return aggregated
            whole = [(client, view.whole_result(client.cid, fit)) for client, fit in results]
            with view.code.switched(users=True):
                parameters, metrics = super().aggregate_fit(server_round, whole, failures)
            return view.flower_model(parameters), metrics

    return Above
