"""What one client returned in a round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fixbn_flwr.method.averaging import Array


@dataclass(frozen=True)
class Update:
    """What one client returned.

    Attributes:
        arrays: Statistics and counters, by name.
        momentum: Momentum buffers by parameter name. Empty unless the mode is global.
        weight: The client's weight in the average, such as its number of examples.
        parameters: The parameters, by name. The inner strategy averages them.
        train_loss: The training loss that the client reported; None if it reported none.
        gradients: What the client reported of its gradients, by the names of the metrics.
    """

    arrays: dict[str, Array]
    momentum: dict[str, Array]
    weight: float
    parameters: Mapping[str, Array] = field(default_factory=dict)
    train_loss: float | None = None
    gradients: Mapping[str, float] = field(default_factory=dict)
