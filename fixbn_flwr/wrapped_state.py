"""What a wrapped strategy has changed in itself since the run began, for checkpoints.

Strategies keep what they need from round to round in attributes: FedAdam its moments, FedAvgM its
momentum, adaptive clipping its norm. Flower has no method that returns those, so they are found by
looking: whatever is a number, a text or arrays, and is not what it was.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.server_state import logger
from fixbn_flwr.trees import can_be_kept, is_same


class WrappedState:
    """Watches strategies from now on.

    Args:
        layers: a strategy and those that it wraps in turn.
    """

    def __init__(self, layers: Sequence[object]) -> None:
        self._layers = layers
        self._before = [
            {name: copy.deepcopy(v) if can_be_kept(v) else v for name, v in vars(layer).items()}
            for layer in layers
        ]
        self._named: set[str] = set()

    def changes(self) -> list[dict[str, Any]]:
        """Return of each layer the attributes that have changed, not copied.

        One that has changed and is none of what :mod:`fixbn_flwr.trees` holds is left out, with a
        warning; a change inside such an object is not seen.
        """
        changed: list[dict[str, Any]] = []
        for layer, before in zip(self._layers, self._before, strict=True):
            changed.append({})
            for name, value in vars(layer).items():
                if name in before and (value is before[name] or is_same(value, before[name])):
                    continue
                if can_be_kept(value):
                    changed[-1][name] = value
                else:
                    self._warn(f"{type(layer).__name__}.{name}", value)
        return changed

    def restore(self, changes: Sequence[dict[str, Any]]) -> None:
        """Set what has changed, in strategies made as those were that it comes from.

        Raises:
            CheckpointError: there were more or fewer strategies around each other.
        """
        if len(changes) != len(self._layers):
            raise CheckpointError(
                f"the checkpoint is of {len(changes)} strategies around each other and here are "
                f"{len(self._layers)}: build the strategy as it was."
            )
        for layer, changed in zip(self._layers, changes, strict=True):
            for name, value in changed.items():
                setattr(layer, name, value)

    def _warn(self, name: str, value: object) -> None:
        if name not in self._named:
            self._named.add(name)
            logger.warning(
                "%s has changed and is a %s, which no checkpoint holds: a resumed run starts "
                "without it. Keep numbers, texts, arrays, or lists and dictionaries of them there.",
                name, type(value).__name__,
            )  # fmt: skip
