"""The state at the end of round T*, to which a run returns if it falls apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.server.inner_strategy_state import copied

Model = TypeVar("Model")
Attributes = list[dict[str, Any]]


class ReturnPoint(Generic[Model]):
    """Keeps the model, the inner strategy's state and the server's momentum at the end of round T*.

    Args:
        state_of_strategy: Returns attributes of the inner strategy and those that it wraps.
        restore_strategy: Takes a copy of what that returned.
    """

    def __init__(
        self,
        state_of_strategy: Callable[[], Attributes],
        restore_strategy: Callable[[Attributes], None],
    ) -> None:
        self._state_of_strategy = state_of_strategy
        self._restore_strategy = restore_strategy
        self._kept: dict[str, Any] | None = None

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
                "strategy": copied(self._state_of_strategy()),
            }

    def go_back(self, server: ServerState) -> Model:
        """Restore everything but the model, which is returned."""
        assert self._kept is not None
        server.global_momentum = self._kept["momentum"]
        self._restore_strategy(copied(self._kept["strategy"]))
        model: Model = self._kept["model"]
        return model

    def state(self) -> dict[str, Any] | None:
        """Return what a resumed run needs, for a checkpoint."""
        return self._kept

    def restore(self, state: dict[str, Any] | None) -> None:
        """Take what ``state`` returned."""
        self._kept = state
