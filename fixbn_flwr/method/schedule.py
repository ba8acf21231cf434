"""The two stages of FixBN: which phase a round belongs to.

Zhong, Chen, Chao, "Making Batch Normalization Great in Federated Deep Learning",
arXiv 2303.06530: rounds 1 to T* explore (plain federated averaging, statistics included),
the rounds after T* calibrate (statistics frozen).
"""

from __future__ import annotations

import math
from enum import StrEnum

from fixbn_flwr.errors import ConfigError


class Phase(StrEnum):
    """The stage a round belongs to; its value is what travels in a message's config."""

    EXPLORATION = "exploration"
    CALIBRATION = "calibration"


def check_freeze_after(freeze_after: int | float) -> None:
    """Refuse a ``freeze_after`` that means no round whatever the number of rounds is.

    Raises:
        ConfigError: not a number, a negative round, or a share outside (0, 1].
    """
    if isinstance(freeze_after, bool) or not isinstance(freeze_after, int | float):
        raise ConfigError(
            f"freeze_after={freeze_after!r} is neither a round nor a share of the rounds: "
            "give an int such as 50 (rounds) or a float such as 0.5 (half of them)."
        )
    if isinstance(freeze_after, int) and freeze_after < 0:
        raise ConfigError(
            f"freeze_after={freeze_after} is a negative round: give 1 or more, "
            "or 0 to start from the statistics of a pretrained model."
        )
    if isinstance(freeze_after, float) and not 0.0 < freeze_after <= 1.0:
        raise ConfigError(
            f"freeze_after={freeze_after} is a share of the rounds and must lie in (0, 1]: "
            f"0.5 freezes after half of them, 1.0 never. For a number of rounds give an int."
        )


def freeze_round(freeze_after: int | float, num_rounds: int) -> int:
    """T*, the last round of exploration.

    Args:
        freeze_after: an int is T* itself, in rounds (0: freeze the initial statistics). A float in
            (0, 1] is a share of ``num_rounds``, rounded to the nearest round (a half upwards) and
            at least 1; 1.0 is all of them, so nothing is ever frozen.
        num_rounds: number of the last round, at least 1.

    Returns:
        T* in rounds; calibration, if any, begins in round T* + 1.

    Raises:
        ConfigError: ``freeze_after`` is neither.
    """
    check_freeze_after(freeze_after)
    if isinstance(freeze_after, int):
        return freeze_after
    return max(1, math.floor(freeze_after * num_rounds + 0.5))


def phase_of(server_round: int, last_exploration_round: int) -> Phase:
    """Return the phase of round ``server_round`` (counted from 1), given T*."""
    if server_round > last_exploration_round:
        return Phase.CALIBRATION
    return Phase.EXPLORATION
