"""Check the options of the method."""

from __future__ import annotations

import math
from typing import Literal, get_args

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.round_config import MomentumMode
from fixbn_flwr.method.schedule import AUTO, FreezeAfter, check_freeze_after
from fixbn_flwr.method.switch import LearningRateFactor

StatisticsAverage = Literal["mean", "pooled"]


def check_options(
    freeze_after: FreezeAfter,
    momentum: MomentumMode,
    statistics: StatisticsAverage,
    learning_rate_factor: LearningRateFactor,
    compare_gradients_every: int,
) -> None:
    """Refuse values that no run can use; see :class:`fixbn_flwr.method.server_rules.ServerState`.

    Raises:
        ConfigError: With the value, the reason and the remedy.
    """
    check_freeze_after(freeze_after)
    if momentum not in get_args(MomentumMode):
        raise ConfigError(f'momentum={momentum!r} is not a mode: use "reset", "local" or "global".')
    if statistics not in get_args(StatisticsAverage):
        raise ConfigError(f'statistics={statistics!r} is not an average: use "mean" or "pooled".')
    factor = learning_rate_factor
    is_number = isinstance(factor, int | float) and math.isfinite(factor) and factor > 0
    if not is_number and factor != AUTO:
        raise ConfigError(
            f"learning_rate_factor={factor!r} multiplies the learning rate in calibration and must "
            'be above zero, or "auto": 1.0 changes nothing, 0.1 is a safe choice.'
        )
    every = compare_gradients_every
    if isinstance(every, bool) or not isinstance(every, int) or every < 0:
        raise ConfigError(
            f"compare_gradients_every={every!r} is no number of rounds: use an int such as 10, or "
            "0 to compare no gradients."
        )
