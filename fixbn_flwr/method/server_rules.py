"""FixBN's rules on the server, for either generation of Flower: what is kept between rounds.

Zhong, Chen, Chao, "Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530.
Knows arrays by name and nothing of messages; :mod:`fixbn_flwr.server.strategy` brings the messages.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fixbn_flwr.errors import ConfigError, NoStatisticsError, StatisticsMovedError
from fixbn_flwr.method.averaging import (
    Array,
    Arrays,
    Kind,
    kind_of,
    merged_counters,
    of_kind,
    pooled_statistics,
    weighted_mean,
)
from fixbn_flwr.method.round_config import MOMENTUM, Momentum, RoundConfig
from fixbn_flwr.method.schedule import Phase, check_freeze_after, freeze_round, phase_of

_AVERAGES = {"mean": weighted_mean, "pooled": pooled_statistics}

_NUMBERED = (
    "the model's arrays are named 0, 1, 2, ..., as those of ArrayRecord([array, ...]) are, and "
    "statistics are told from parameters by their names: send ArrayRecord(model.state_dict())."
)

PARAMETERS_ONLY = (
    "A client mod that clips or adds noise must leave statistics, counters and momentum buffers "
    "alone: if there is one, write mods=[parameters_only(the_mod)], with parameters_only of "
    "fixbn_flwr; where numpy_client_mod is in the list, it comes after."
)

logger = logging.getLogger("flwr.fixbn")


@dataclass(frozen=True)
class Update:
    """What one client returned, beside the parameters.

    Attributes:
        arrays: statistics and counters, by name.
        momentum: momentum buffers by parameter name; empty unless the mode is global.
        weight: what the client counts with, its number of examples.
    """

    arrays: dict[str, Array]
    momentum: dict[str, Array]
    weight: float


@dataclass
class ServerState:
    """The method's choices, and what the server keeps from round to round.

    Attributes:
        freeze_after: T*, as rounds (int) or as a share of the rounds (float).
        momentum: "reset", "local" or "global".
        statistics: how statistics are averaged, "mean" or "pooled".
        learning_rate_factor: for every learning rate in calibration.
        phase: of the round begun last; exploration before the first.
        frozen_statistics: S* by name from round T* + 1 on, None before.
        global_momentum: the averaged buffers by parameter name, in mode "global".

    Raises:
        ConfigError: a value that is none of these.
    """

    freeze_after: int | float
    momentum: str
    statistics: str
    learning_rate_factor: float
    phase: Phase = field(default=Phase.EXPLORATION, init=False)
    frozen_statistics: dict[str, Array] | None = field(default=None, init=False)
    global_momentum: dict[str, Array] = field(default_factory=dict, init=False)
    _freeze_round: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_freeze_after(self.freeze_after)
        if isinstance(self.freeze_after, int):
            self._freeze_round = self.freeze_after
        if self.momentum not in list(Momentum):
            raise ConfigError(
                f'momentum={self.momentum!r} is not a mode: use "reset", "local" or "global".'
            )
        if self.statistics not in _AVERAGES:
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
            NoStatisticsError: statistics are to be frozen, and the model has none.
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
                    "normalisation. Say freeze_after=1.0 if that is what you want.",
                    self.freeze_after, num_rounds,
                )  # fmt: skip
            return
        if numbered:
            raise NoStatisticsError(_NUMBERED)
        if not any(kind_of(name) is Kind.STATISTIC for name in names):
            raise NoStatisticsError(
                f"none of the {len(names)} arrays of the model is a running_mean or running_var, "
                "so there is nothing to freeze. If the model has batch normalisation, send all of "
                "model.state_dict(), not parameters() only; if it has none, set freeze_after=1.0."
            )
        if self._freeze_round == 0:
            logger.warning(
                "freeze_after=0 freezes the initial model's statistics, which only a pretrained "
                "model has: an untrained one starts with mean 0 and variance 1 everywhere."
            )

    def warn_of_uncovered(self, wrapper: str) -> None:
        """Say what a wrapper for differential privacy, of this name, does not cover."""
        buffers = ", momentum buffers" if self.momentum == Momentum.GLOBAL else ""
        logger.warning(
            "%s clips and adds noise to parameters only: its privacy guarantee does not cover "
            "statistics, counters%s, which are averaged as the clients send them.",
            wrapper, buffers,
        )  # fmt: skip

    def begin_round(self, server_round: int, arrays: Arrays) -> RoundConfig:
        """Enter a round, given the global statistics and counters; return what to ask of clients.

        Raises:
            ConfigError: a share of the rounds was given and ``start`` has not told their number.
        """
        if self._freeze_round is None:
            raise ConfigError(
                f"freeze_after={self.freeze_after} is a share of the rounds, and their number is "
                "not known: run the strategy with its start(), or give freeze_after as an int."
            )
        self.phase = phase_of(server_round, self._freeze_round)
        if self.phase is Phase.CALIBRATION and self.frozen_statistics is None:
            self.frozen_statistics = of_kind(arrays, Kind.STATISTIC)
        calibrating = self.phase is Phase.CALIBRATION
        return RoundConfig(
            server_round=server_round,
            phase=self.phase,
            momentum=Momentum(self.momentum),
            learning_rate_factor=float(self.learning_rate_factor) if calibrating else 1.0,
        )

    def check_unmoved(self, client: int | str, update: Update, *, strict: bool) -> None:
        """Warn when a client sent the frozen statistics back changed.

        Raises:
            StatisticsMovedError: they are changed, and ``strict`` is set.
        """
        frozen = (self.frozen_statistics or {}) if self.phase is Phase.CALIBRATION else {}
        moved = [n for n, value in frozen.items() if not np.array_equal(update.arrays[n], value)]
        if not moved:
            return
        warning = (
            f"client {client} returned {len(moved)} of {len(frozen)} frozen statistics changed, "
            f"first {moved[0]!r}: it trained with its own. Train inside `with "
            f"local_training(...)`. {PARAMETERS_ONLY}"
        )
        if strict:
            raise StatisticsMovedError(warning)
        logger.warning(warning)

    def to_defend(self, update: Update) -> dict[str, Array]:
        """Return what a wrapped strategy that defends must judge beside a client's parameters.

        A strategy that chooses among clients, or trims their values, defends only what it sees: a
        plain mean of the rest would be an open door beside it. In exploration these are the
        statistics, in mode "global" the momentum buffers too, under names that no parameter has.
        """
        statistics = of_kind(update.arrays, Kind.STATISTIC)
        return {
            **(statistics if self.phase is Phase.EXPLORATION else {}),
            **{_name_of_buffer(name): buffer for name, buffer in update.momentum.items()},
        }

    def end_round(
        self, updates: Sequence[Update], arrays: Arrays, *, defended: Arrays | None = None
    ) -> dict[str, Array]:
        """Return the new global statistics and counters from at least one client's update.

        Args:
            updates: in the order in which they are to be summed.
            arrays: the global statistics and counters that the round began with.
            defended: what a strategy that defends made of the updates' ``to_defend``; None when
                the wrapped strategy does not defend, and statistics are averaged here.
        """
        weights = [update.weight for update in updates]
        if self.momentum == Momentum.GLOBAL:
            self.global_momentum = (
                weighted_mean([update.momentum for update in updates], weights)
                if defended is None
                else {name: defended[_name_of_buffer(name)] for name in updates[0].momentum}
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
            **_median_counters(counters),
        }


def _name_of_buffer(name: str) -> str:
    return f"{MOMENTUM}/{name}"


def _median_counters(updates: Sequence[Arrays]) -> dict[str, Array]:
    """Return the (lower) median of each counter, which less than half of the clients cannot move.

    The maximum is whatever one hostile client says, and a count of 2**62 stops a layer with
    ``momentum=None``, which divides by its count, from ever learning a statistic again.
    """
    middle = (len(updates) - 1) // 2
    return {
        name: np.sort(np.stack([update[name] for update in updates]), axis=0)[middle, ...]
        for name in updates[0]
    }


def _only(updates: Sequence[Update], kind: Kind) -> list[dict[str, Array]]:
    return [of_kind(update.arrays, kind) for update in updates]
