"""What a strategy needs, beside the model, to resume a run.

Flower gives every run its own id, so a resumed run is another run to it. Clients stamp the momentum
buffers they keep with the run (:mod:`fixbn_flwr.client.momentum_store`). So the server tells them
which runs this one resumes, and how many rounds of each count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord

from fixbn_flwr.method.round_config import RoundConfig
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.server.inner_strategy_state import InnerStrategyState, attributes_of, copied
from fixbn_flwr.server.return_point import ReturnPoint


class Resumption:
    """Keeps track of what ``FixBN.state`` returns.

    Args:
        layers: The inner strategy and those that it wraps in turn.

    Attributes:
        return_point: The state to which the run returns if it falls apart after T*.
    """

    def __init__(self, layers: Sequence[object]) -> None:
        self._layers = layers
        self._inner = InnerStrategyState(layers)
        self.return_point: ReturnPoint[ArrayRecord] = ReturnPoint(layers)
        self._run = 0
        self._resumed: dict[int, int] = {}
        self._restored: Mapping[str, Any] | None = None

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned, for the next run."""
        self._restored = state

    def begin(self, run: int, rounds_before: int, server: ServerState) -> None:
        """Begin a run.

        Args:
            run: Flower's run id.
            rounds_before: The number of rounds that are done already.
            server: Gets its own state back.

        Raises:
            CheckpointError: If the inner strategy is not built as it was.
        """
        self._run, self._resumed = run, {}
        self.return_point.restore(None)
        if self._restored is not None:
            state, self._restored = self._restored, None
            self._resumed = {**dict(state["resumed"]), state["run"]: rounds_before}
            server.global_momentum = dict(state["momentum"])
            if "switch" in state:  # older versions did not keep it
                server.switch.restore(state["switch"])
                server.signals.restore(state["signals"])
                self._restore_return_point(state["return_point"])
            self._inner.restore(state["strategy"])

    def _restore_return_point(self, kept: Mapping[str, Any] | None) -> None:
        if kept is not None:
            self._inner.restore(kept["strategy"])
            self.return_point.restore({**kept, "strategy": copied(attributes_of(self._layers))})

    def state(self, server: ServerState) -> dict[str, Any]:
        """Return what the next run needs."""
        kept = self.return_point.state()
        if kept is not None:
            kept = {**kept, "strategy": self._inner.changes_in(kept["strategy"])}
        return {
            "run": self._run,
            "resumed": [[run, last] for run, last in self._resumed.items()],
            "momentum": server.global_momentum,
            "strategy": self._inner.changes(),
            "switch": server.switch.state(),
            "signals": server.signals.state(),
            "return_point": kept,
        }

    def add_to(self, instructions: RoundConfig, checkpoints: Sequence[int]) -> RoundConfig:
        """Return a round's instructions with what clients need to keep their momentum."""
        return replace(instructions, resumed=self._resumed, checkpoints=checkpoints)
