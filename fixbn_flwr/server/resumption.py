"""What a strategy must have, beside the model, to go on where a run was stopped.

Flower gives every run a number of its own, so that a resumed run is another one to it. Which runs
it goes on from, and how far each of them counts, is told to clients, whose kept momentum is stamped
with the run (:mod:`fixbn_flwr.client.momentum_store`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fixbn_flwr.method.round_config import RoundConfig
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.server.inner_strategy_state import WrappedState


class Resumption:
    """Keeps track of what ``FixBN.state`` returns.

    Args:
        layers: the wrapped strategy and those that it wraps in turn.
    """

    def __init__(self, layers: Sequence[object]) -> None:
        self._wrapped = WrappedState(layers)
        self._run = 0
        self._resumed: dict[int, int] = {}
        self._restored: Mapping[str, Any] | None = None

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned, for the next run."""
        self._restored = state

    def begin(self, run: int, rounds_before: int, server: ServerState) -> None:
        """Begin a run: Flower's number of it, and how many rounds are done.

        Raises:
            CheckpointError: the wrapped strategy is not built as it was.
        """
        self._run, self._resumed = run, {}
        if self._restored is not None:
            state, self._restored = self._restored, None
            self._resumed = {**dict(state["resumed"]), state["run"]: rounds_before}
            server.global_momentum = dict(state["momentum"])
            self._wrapped.restore(state["strategy"])

    def state(self, server: ServerState) -> dict[str, Any]:
        """Return what the next run needs."""
        return {
            "run": self._run,
            "resumed": [[run, last] for run, last in self._resumed.items()],
            "momentum": server.global_momentum,
            "strategy": self._wrapped.changes(),
        }

    def told(self, asked: RoundConfig, checkpoints: Sequence[int]) -> RoundConfig:
        """Return what is asked of clients, with what they must know to keep their momentum."""
        return replace(asked, resumed=self._resumed, checkpoints=checkpoints)
