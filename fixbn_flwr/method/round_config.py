"""What the server tells its clients in a round: the keys on the wire and their values.

Both generations of Flower carry the same keys in a message's config. Averaged momentum buffers
travel beside the arrays: as an ArrayRecord in the Message API, and as one safetensors blob in
config and metrics in the older generation, which has no second list of arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.schedule import Phase

ROUND = "server-round"  # Flower's own
PHASE = "fixbn-phase"
MOMENTUM = "fixbn-momentum"  # the mode, and the name of the ArrayRecord of averaged buffers
LEARNING_RATE_FACTOR = "fixbn-learning-rate-factor"
RESUMED = "fixbn-resumed"  # only in a resumed run
CHECKPOINTS = "fixbn-checkpoints"  # only in a run that writes checkpoints
KEPT_ROUND = "fixbn-kept-round"  # only while the run may go back to it
DISCARDED = "fixbn-discarded"  # only after it has

COMPARE_GRADIENTS = "fixbn-compare-gradients"  # only in rounds in which clients do
GRADIENTS = "fixbn-gradients"  # the ConfigRecord of a client's comparison
GRADIENT_COSINE = "fixbn-gradient-cosine"
GRADIENT_NORM_RATIO = "fixbn-gradient-norm-ratio"

MOMENTUM_BLOB = "fixbn-momentum-buffers"
"""Key of the averaged buffers in the older generation's config and metrics: safetensors bytes."""

PARAMETERS_ONLY_MARK = "fixbn-parameters-only"
"""Name of an empty ConfigRecord in a reply whose client mods changed its parameters only."""

MomentumMode = Literal["reset", "local", "global"]


class Momentum(StrEnum):
    """Where a client's momentum buffers come from at the start of its local training.

    RESET: They are zero. LOCAL: They are the client's own, from its last local training (the
    paper's proposal). GLOBAL: They are the average of those that clients returned last round.
    """

    RESET = "reset"
    LOCAL = "local"
    GLOBAL = "global"


@dataclass(frozen=True)
class RoundConfig:
    """The server's instructions to its clients for one round.

    Attributes:
        server_round: The round, counted from 1.
        phase: Exploration, or calibration with frozen statistics.
        momentum: Where the momentum buffers come from.
        learning_rate_factor: Clients multiply every learning rate by it.
        resumed: The runs that this run resumes, the first one first: Flower's run id of each, and
            the last of its rounds that counts.
        checkpoints: The rounds after which this run can be resumed.
        kept_round: The round whose end the run may go back to, if it falls apart; or None.
        compare_gradients: Whether clients compare gradients in this round.
        discarded: The rounds that do not count, from after the first number to the second; or None.
    """

    server_round: int
    phase: Phase
    momentum: Momentum
    learning_rate_factor: float
    resumed: Mapping[int, int] = field(default_factory=dict)
    checkpoints: Sequence[int] = ()
    kept_round: int | None = None
    discarded: tuple[int, int] | None = None
    compare_gradients: bool = False

    def as_config(self) -> dict[str, int | float | str]:
        """Return the entries of a message's config, the same in both generations of Flower."""
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
        if self.kept_round is not None:
            config[KEPT_ROUND] = self.kept_round
        if self.compare_gradients:
            config[COMPARE_GRADIENTS] = 1
        if self.discarded is not None:
            config[DISCARDED] = ":".join(map(str, self.discarded))
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RoundConfig | None:
        """Read a received config.

        Returns:
            The instructions, or None when the server does not use FixBN.

        Raises:
            ConfigError: If entries are missing, or another version of this package wrote them.
        """
        if PHASE not in config:
            return None
        try:
            resumed = (part.partition(":") for part in _parts(config.get(RESUMED)))
            kept = config.get(KEPT_ROUND)
            after, _, until = str(config.get(DISCARDED, "")).partition(":")
            return cls(
                server_round=int(config[ROUND]),
                phase=Phase(config[PHASE]),
                momentum=Momentum(str(config[MOMENTUM])),
                learning_rate_factor=float(config[LEARNING_RATE_FACTOR]),
                resumed={int(run): int(last) for run, _, last in resumed},
                checkpoints=tuple(map(int, _parts(config.get(CHECKPOINTS)))),
                kept_round=None if kept is None else int(kept),
                discarded=(int(after), int(until)) if until else None,
                compare_gradients=COMPARE_GRADIENTS in config,
            )
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"the server's config has {PHASE}={config[PHASE]!r} but cannot be read ({error}): "
                "install the same version of fixbn-flwr on server and clients."
            ) from error


def _parts(text: object) -> list[str]:
    return str(text).split(",") if text else []
