"""What server and client say to each other: the keys on the wire and their values.

Both generations of Flower carry the same keys in a message's config. Global momentum travels beside
the arrays, as an ArrayRecord in the Message API; the older generation has no room for a second list
of arrays, so one safetensors blob stands under the same key there, in config and metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.schedule import Phase

ROUND = "server-round"  # Flower's own
PHASE = "fixbn-phase"
MOMENTUM = "fixbn-momentum"
LEARNING_RATE_FACTOR = "fixbn-learning-rate-factor"
RESUMED = "fixbn-resumed"  # only in a resumed run
CHECKPOINTS = "fixbn-checkpoints"  # only in a run that writes checkpoints


class Momentum(StrEnum):
    """Where SGD's momentum buffers come from at the start of a local training.

    RESET: zero. LOCAL: the client's own, from its last local training (the paper's proposal).
    GLOBAL: the average of those that the clients returned in the last round.
    """

    RESET = "reset"
    LOCAL = "local"
    GLOBAL = "global"


@dataclass(frozen=True)
class RoundConfig:
    """What the server asks of its clients in one round.

    Attributes:
        server_round: the round, counted from 1.
        phase: exploration, or calibration with frozen statistics.
        momentum: where the momentum buffers come from.
        learning_rate_factor: every parameter group's learning rate is multiplied by it.
        resumed: the runs that this one goes on from, the first one first: Flower's number of each,
            and the last of its rounds that counts.
        checkpoints: the rounds after which this run can be resumed.
    """

    server_round: int
    phase: Phase
    momentum: Momentum
    learning_rate_factor: float
    resumed: Mapping[int, int] = field(default_factory=dict)
    checkpoints: Sequence[int] = ()

    def as_config(self) -> dict[str, int | float | str]:
        """Return the config's entries, the same for both generations of Flower."""
        config: dict[str, int | float | str] = {
            ROUND: self.server_round,
            PHASE: str(self.phase),
            MOMENTUM: str(self.momentum),
            LEARNING_RATE_FACTOR: self.learning_rate_factor,
        }
        if self.resumed:
            config[RESUMED] = ",".join(f"{run}:{last}" for run, last in self.resumed.items())
        if self.checkpoints:
            config[CHECKPOINTS] = ",".join(map(str, self.checkpoints))
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RoundConfig | None:
        """Read a received config; None when its sender does not use FixBN.

        Raises:
            ConfigError: the entries are incomplete or of another version of this package.
        """
        if PHASE not in config:
            return None
        momentum = config.get(MOMENTUM)
        try:
            return cls(
                server_round=int(config[ROUND]),
                phase=Phase(config[PHASE]),
                # In the older generation the averaged buffers themselves stand in the mode's place.
                momentum=Momentum.GLOBAL
                if isinstance(momentum, bytes)
                else Momentum(str(momentum)),
                learning_rate_factor=float(config[LEARNING_RATE_FACTOR]),
                resumed={
                    int(run): int(last)
                    for run, _, last in (
                        part.partition(":") for part in _parts(config.get(RESUMED))
                    )
                },
                checkpoints=tuple(map(int, _parts(config.get(CHECKPOINTS)))),
            )
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"the server's config names {PHASE}={config[PHASE]!r} but cannot be understood "
                f"({error}): install the same version of fixbn-flwr on server and clients."
            ) from error


def _parts(text: object) -> list[str]:
    return str(text).split(",") if text else []
