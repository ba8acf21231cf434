"""FixBN's rules on the server, for either generation of Flower, and the state between rounds.

Zhong, Chen, Chao, "Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530.
This module knows named arrays and no messages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from fixbn_flwr.errors import ConfigError, NoStatisticsError, StatisticsMovedError
from fixbn_flwr.log import logger
from fixbn_flwr.method.averaging import (
    Array,
    Arrays,
    Kind,
    kind_of,
    median_counters,
    merged_counters,
    of_kind,
    pooled_statistics,
    weighted_mean,
)
from fixbn_flwr.method.round_config import MOMENTUM, Momentum, MomentumMode, RoundConfig
from fixbn_flwr.method.schedule import Phase, check_freeze_after, freeze_round, phase_of

StatisticsAverage = Literal["mean", "pooled"]
_AVERAGES = {"mean": weighted_mean, "pooled": pooled_statistics}

_NUMBERED = (
    "the model's arrays are named 0, 1, 2, ..., as in ArrayRecord([array, ...]), and FixBN finds "
    "statistics by name: send ArrayRecord(model.state_dict())."
)

PARAMETERS_ONLY = (
    "A client mod that clips or adds noise must not change statistics, counters or momentum "
    "buffers: wrap it as mods=[parameters_only(the_mod)], with parameters_only from fixbn_flwr, "
    "placed before numpy_client_mod if that is in the list."
)


@dataclass(frozen=True)
class Update:
    """What one client returned, apart from the parameters.

    Attributes:
        arrays: Statistics and counters, by name.
        momentum: Momentum buffers by parameter name. Empty unless the mode is global.
        weight: The client's weight in the average, such as its number of examples.
    """

    arrays: dict[str, Array]
    momentum: dict[str, Array]
    weight: float


@dataclass
class ServerState:
    """The method's options, and what the server keeps from round to round.

    Attributes:
        freeze_after: T*, as rounds (int) or as a share of the rounds (float).
        momentum: "reset", "local" or "global".
        statistics: How statistics are averaged, "mean" or "pooled".
        learning_rate_factor: Factor for every learning rate in calibration.
        phase: The phase of the last round begun; exploration before the first.
        frozen_statistics: S* by name from round T* + 1 on, None before.
        global_momentum: The averaged buffers by parameter name, in mode "global".

    Raises:
        ConfigError: If an option has none of these values.
    """

    freeze_after: int | float
    momentum: MomentumMode
    statistics: StatisticsAverage
    learning_rate_factor: float
    phase: Phase = field(default=Phase.EXPLORATION, init=False)
    frozen_statistics: dict[str, Array] | None = field(default=None, init=False)
    global_momentum: dict[str, Array] = field(default_factory=dict, init=False)
    _freeze_round: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_freeze_after(self.freeze_after)
        if isinstance(self.freeze_after, int):
            self._freeze_round = self.freeze_after
        if self.momentum not in get_args(MomentumMode):
            raise ConfigError(
                f'momentum={self.momentum!r} is not a mode: use "reset", "local" or "global".'
            )
        if self.statistics not in get_args(StatisticsAverage):
            raise ConfigError(
                f'statistics={self.statistics!r} is not an average: use "mean" or "pooled".'
            )
        factor = self.learning_rate_factor
        if not isinstance(factor, int | float) or not (math.isfinite(factor) and factor > 0):
            raise ConfigError(
                f"learning_rate_factor={factor!r} multiplies the learning rate in calibration and "
                "must be above zero: 1.0 changes nothing, 0.1 is a safe choice."
            )

    def start(self, num_rounds: int, names: Sequence[str]) -> None:
        """Begin a run of ``num_rounds`` rounds of a model with these arrays; forget any earlier.

        Raises:
            NoStatisticsError: If statistics are to be frozen and the model has none.
        """
        self.frozen_statistics, self.global_momentum = None, {}
        self.phase = Phase.EXPLORATION
        self._freeze_round = freeze_round(self.freeze_after, num_rounds)
        numbered = bool(names) and all(name.isdigit() for name in names)
        if self._freeze_round >= num_rounds:
            if numbered:
                logger.warning("%s Every array is treated as a parameter.", _NUMBERED)
            if self.freeze_after != 1.0 or isinstance(self.freeze_after, int):
                logger.warning(
                    "freeze_after=%s never freezes in %s rounds: this is plain batch "
                    "normalization. Set freeze_after=1.0 if that is what you want.",
                    self.freeze_after, num_rounds,
                )  # fmt: skip
            return
        if numbered:
            raise NoStatisticsError(_NUMBERED)
        if not any(kind_of(name) is Kind.STATISTIC for name in names):
            raise NoStatisticsError(
                f"none of the model's {len(names)} arrays is a running_mean or running_var, so "
                "there is nothing to freeze. If the model has batch normalization, send all of "
                "model.state_dict(), not only parameters(). If it has none, set freeze_after=1.0."
            )
        if self._freeze_round == 0:
            logger.warning(
                "freeze_after=0 freezes the initial statistics. Only a pretrained model has useful "
                "ones: those of an untrained model are mean 0 and variance 1."
            )

    @property
    def averages_momentum(self) -> bool:
        """Whether clients send their momentum buffers, and the server averages them."""
        return self.momentum == "global"

    def begin_round(self, server_round: int, arrays: Arrays) -> RoundConfig:
        """Begin a round and return the instructions for its clients.

        Args:
            server_round: The round, counted from 1.
            arrays: The global statistics and counters.

        Raises:
            ConfigError: If ``freeze_after`` is a share of the rounds and ``start`` was not called.
        """
        if self._freeze_round is None:
            raise ConfigError(
                f"freeze_after={self.freeze_after} is a share of the rounds, and their number is "
                "unknown: run the strategy through its start(), or give freeze_after as an int."
            )
        self.phase = phase_of(server_round, self._freeze_round)
        calibrating = self.phase is Phase.CALIBRATION
        if calibrating and self.frozen_statistics is None:
            self.frozen_statistics = of_kind(arrays, Kind.STATISTIC)
        return RoundConfig(
            server_round=server_round,
            phase=self.phase,
            momentum=Momentum(self.momentum),
            learning_rate_factor=float(self.learning_rate_factor) if calibrating else 1.0,
        )

    def check_unmoved(self, client: int | str, update: Update, *, strict: bool) -> None:
        """Warn when a client returned frozen statistics changed.

        Raises:
            StatisticsMovedError: If they changed and ``strict`` is set.
        """
        frozen = (self.frozen_statistics or {}) if self.phase is Phase.CALIBRATION else {}
        moved = [n for n, value in frozen.items() if not np.array_equal(update.arrays[n], value)]
        if not moved:
            return
        warning = (
            f"client {client} returned {len(moved)} of {len(frozen)} frozen statistics changed, "
            f"first {moved[0]!r}: it did not freeze them. Train inside `with "
            f"local_training(...)`. {PARAMETERS_ONLY}"
        )
        if strict:
            raise StatisticsMovedError(warning)
        logger.warning(warning)

    def to_defend(self, update: Update) -> dict[str, Array]:
        """Return the arrays that a defending strategy must judge together with the parameters.

        A strategy that selects clients or trims values protects only the arrays it sees. A plain
        mean of the others would let a hostile client in. In exploration these are the statistics.
        In mode "global" they are also the momentum buffers, under names that no parameter has.
        """
        statistics = of_kind(update.arrays, Kind.STATISTIC)
        return {
            **(statistics if self.phase is Phase.EXPLORATION else {}),
            **{_name_of_buffer(name): buffer for name, buffer in update.momentum.items()},
        }

    def end_round(
        self, updates: Sequence[Update], arrays: Arrays, *, defended: Arrays | None = None
    ) -> dict[str, Array]:
        """Return the new global statistics and counters.

        Args:
            updates: One per client, at least one, in the order in which they are summed.
            arrays: The global statistics and counters at the start of the round.
            defended: What a defending strategy made of ``to_defend``. With None (the default) the
                statistics are averaged here.
        """
        weights = [update.weight for update in updates]
        if self.averages_momentum:
            names = {name: _name_of_buffer(name) for name in updates[0].momentum}
            # A user's own aggregation may return the model and no buffers.
            self.global_momentum = (
                {name: defended[key] for name, key in names.items()}
                if defended is not None and {*names.values()} <= defended.keys()
                else weighted_mean([update.momentum for update in updates], weights)
            )
        if self.phase is Phase.CALIBRATION:
            return {**arrays, **(self.frozen_statistics or {})}
        counters = _only(updates, Kind.COUNTER)
        if defended is None:
            statistics = _AVERAGES[self.statistics](_only(updates, Kind.STATISTIC), weights)
            return {**statistics, **merged_counters(counters)}
        return {
            **{
                name: np.asarray(defended[name]).astype(array.dtype)
                for name, array in of_kind(arrays, Kind.STATISTIC).items()
            },
            **median_counters(counters),
        }


def _name_of_buffer(name: str) -> str:
    return f"{MOMENTUM}/{name}"


def _only(updates: Sequence[Update], kind: Kind) -> list[dict[str, Array]]:
    return [of_kind(update.arrays, kind) for update in updates]
