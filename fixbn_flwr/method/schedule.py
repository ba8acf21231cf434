"""Decide which of FixBN's two phases a round belongs to.

Rounds 1 to T* are exploration: plain federated averaging, statistics included. The rounds after T*
are calibration, with frozen statistics. See Zhong, Chen, Chao, "Making Batch Normalization Great in
Federated Deep Learning", arXiv 2303.06530.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Literal

from fixbn_flwr.errors import ConfigError

FreezeAfter = int | float | Literal["auto"]
AUTO: Literal["auto"] = "auto"


class Phase(StrEnum):
    """The phase of a round, as sent in a message's config.

    Examples:
        >>> from fixbn_flwr import Phase
        >>> Phase("calibration") is Phase.CALIBRATION
        True
        >>> [str(phase) for phase in Phase]
        ['exploration', 'calibration']
    """

    EXPLORATION = "exploration"
    CALIBRATION = "calibration"


def check_freeze_after(freeze_after: FreezeAfter) -> None:
    """Raise an error if ``freeze_after`` is invalid for every number of rounds.

    Raises:
        ConfigError: If it is another word than "auto", a negative round, or a share outside (0, 1].
    """
    if freeze_after == AUTO:
        return
    if isinstance(freeze_after, bool) or not isinstance(freeze_after, int | float):
        raise ConfigError(
            f"freeze_after={freeze_after!r} is neither a round nor a share of the rounds: "
            'use an int such as 50 (rounds), a float such as 0.5 (half of the rounds), or "auto".'
        )
    if isinstance(freeze_after, int) and freeze_after < 0:
        raise ConfigError(
            f"freeze_after={freeze_after} is a negative round: use 1 or more, "
            "or 0 to freeze the statistics of a pretrained model from the start."
        )
    if isinstance(freeze_after, float) and not 0.0 < freeze_after <= 1.0:
        raise ConfigError(
            f"freeze_after={freeze_after} is a share of the rounds and must lie in (0, 1]: "
            "0.5 freezes after half of them, 1.0 never. For a number of rounds, use an int."
        )


def freeze_round(freeze_after: int | float, num_rounds: int) -> int:
    """Return T*, the last round of exploration.

    Args:
        freeze_after: An int is T* itself; 0 freezes the initial statistics. A float in (0, 1] is a
            share of ``num_rounds``, rounded half up to a round, and at least 1; 1.0 never freezes.
        num_rounds: The number of rounds, at least 1.

    Returns:
        T*; calibration, if any, begins in round T* + 1.

    Raises:
        ConfigError: If ``freeze_after`` is invalid.
    """
    check_freeze_after(freeze_after)
    if isinstance(freeze_after, int):
        return freeze_after
    return max(1, math.floor(freeze_after * num_rounds + 0.5))


def phase_of(server_round: int, last_exploration_round: int) -> Phase:
    """Return the phase of a round, counted from 1, given T*."""
    if server_round > last_exploration_round:
        return Phase.CALIBRATION
    return Phase.EXPLORATION
