"""The state at the end of round T*, to which a run returns if it falls apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.server.inner_strategy_state import attributes_of, copied, put_back

Model = TypeVar("Model")


class ReturnPoint(Generic[Model]):
    """Keeps the model, the inner strategy's state and the server's momentum at the end of round T*.

    Of an attribute that is neither numbers, strings, arrays nor tensors the reference is kept.

    Args:
        layers: The inner strategy and those that it wraps in turn.
    """

    def __init__(self, layers: Sequence[object]) -> None:
        self._layers = layers
        self._kept: Mapping[str, Any] | None = None

    def keep(self, server_round: int, model: Model, server: ServerState) -> None:
        """Keep the state at the start of round T* + 1, and forget it when it is not needed.

        Args:
            server_round: The round that begins.
            model: The whole model.
            server: FixBN's rules.
        """
        if server.switch.kept_round(server_round) is None:
            self._kept = None
        elif self._kept is None:
            self._kept = {
                "model": model,
                "momentum": server.global_momentum,
                "strategy": copied(attributes_of(self._layers)),
            }

    def go_back(self, server: ServerState) -> Model:
        """Restore everything but the model, which is returned."""
        assert self._kept is not None
        server.global_momentum = self._kept["momentum"]
        put_back(self._layers, copied(self._kept["strategy"]))
        model: Model = self._kept["model"]
        return model

    def state(self) -> Mapping[str, Any] | None:
        """Return what is kept, if anything; "strategy" has all attributes of the layers."""
        return self._kept

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Take what ``state`` returned."""
        self._kept = state
