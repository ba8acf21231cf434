"""FixBN's rules on the server, for either generation of Flower, and the state between rounds.

Zhong, Chen, Chao, "Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530.
This module knows named arrays and no messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fixbn_flwr.errors import ConfigError, StatisticsMovedError
from fixbn_flwr.log import logger
from fixbn_flwr.method.averaging import (
    Array,
    Arrays,
    Kind,
    median_counters,
    merged_counters,
    of_kind,
    pooled_statistics,
    weighted_mean,
)
from fixbn_flwr.method.narrow_types import is_same_or_rounded
from fixbn_flwr.method.options import StatisticsAverage, check_options
from fixbn_flwr.method.round_config import MOMENTUM, Momentum, MomentumMode, RoundConfig
from fixbn_flwr.method.schedule import FreezeAfter, Phase
from fixbn_flwr.method.signals import Signals, SignalTracker
from fixbn_flwr.method.statistics_names import check_names
from fixbn_flwr.method.switch import LearningRateFactor, Switch
from fixbn_flwr.method.update import Update

_AVERAGES = {"mean": weighted_mean, "pooled": pooled_statistics}

PARAMETERS_ONLY = (
    "A client mod that clips or adds noise must not change statistics, counters or momentum "
    "buffers: wrap it as mods=[parameters_only(the_mod)], with parameters_only from fixbn_flwr, "
    "placed before numpy_client_mod if that is in the list."
)


@dataclass
class ServerState:
    """The method's options, and what the server keeps from round to round.

    Attributes:
        freeze_after: T*, as rounds (int), as a share of the rounds (float), or "auto".
        momentum: "reset", "local" or "global".
        statistics: How statistics are averaged, "mean" or "pooled".
        learning_rate_factor: Factor for every learning rate in calibration, or "auto".
        guard: Whether a run that falls apart after T* goes back to T*.
        compare_gradients_every: Every how many rounds of exploration clients compare gradients; 0
            for never.
        switch: The state of the switch from exploration to calibration.
        signals: Measures each round's signals.
        phase: The phase of the last round begun; exploration before the first.
        factor: What clients multiply their learning rates by in that round.
        last_signals: The signals of the last round; None without a usable reply.
        frozen_statistics: S* by name from round T* + 1 on, None before.
        global_momentum: The averaged buffers by parameter name, in mode "global".

    Raises:
        ConfigError: If an option has none of these values.
    """

    freeze_after: FreezeAfter
    momentum: MomentumMode
    statistics: StatisticsAverage
    learning_rate_factor: LearningRateFactor
    guard: bool = True
    compare_gradients_every: int = 0
    switch: Switch = field(init=False)
    signals: SignalTracker = field(default_factory=SignalTracker, init=False)
    phase: Phase = field(default=Phase.EXPLORATION, init=False)
    factor: float = field(default=1.0, init=False)
    last_signals: Signals | None = field(default=None, init=False)
    frozen_statistics: dict[str, Array] | None = field(default=None, init=False)
    global_momentum: dict[str, Array] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        check_options(
            self.freeze_after,
            self.momentum,
            self.statistics,
            self.learning_rate_factor,
            self.compare_gradients_every,
        )
        self.switch = Switch(self.freeze_after, self.learning_rate_factor, guard=self.guard)

    def start(self, num_rounds: int, names: Sequence[str]) -> None:
        """Begin a run of ``num_rounds`` rounds of a model with these arrays; forget any earlier.

        Raises:
            NoStatisticsError: If statistics are to be frozen and the model has none.
        """
        self.frozen_statistics, self.global_momentum = None, {}
        self.signals = SignalTracker()
        self.phase, self.factor, self.last_signals = Phase.EXPLORATION, 1.0, None
        self.switch.start(num_rounds)
        check_names(names, self.freeze_after, self.switch.freeze_round, num_rounds)

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
            ConfigError: If ``freeze_after`` is no int and ``start`` was not called.
        """
        if not self.switch.is_ready:
            raise ConfigError(
                f"freeze_after={self.freeze_after!r} depends on the number of rounds, which is "
                "unknown: run the strategy through its start(), or give freeze_after as an int."
            )
        self.phase = self.switch.phase(server_round)
        if self.phase is Phase.EXPLORATION:
            self.frozen_statistics = None
        elif self.frozen_statistics is None:
            self.frozen_statistics = of_kind(arrays, Kind.STATISTIC)
        self.factor = self.switch.factor(server_round)
        return RoundConfig(
            server_round=server_round,
            phase=self.phase,
            momentum=Momentum(self.momentum),
            learning_rate_factor=self.factor,
            kept_round=self.switch.kept_round(server_round),
            discarded=self.switch.guard.discarded,
            compare_gradients=self._compares_gradients(server_round),
        )

    def _compares_gradients(self, server_round: int) -> bool:
        every = self.compare_gradients_every
        return self.phase is Phase.EXPLORATION and every > 0 and server_round % every == 0

    def check_unmoved(self, client: int | str, update: Update, *, strict: bool) -> None:
        """Warn when a client returned frozen statistics changed, other than by its model's type.

        Raises:
            StatisticsMovedError: If they changed and ``strict`` is set.
        """
        frozen = (self.frozen_statistics or {}) if self.phase is Phase.CALIBRATION else {}
        moved = [n for n, v in frozen.items() if not is_same_or_rounded(update.arrays[n], v)]
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

    def observe(self, updates: Mapping[Any, Update], sent: Arrays) -> Signals | None:
        """Return the signals of a round; None without a usable reply.

        Args:
            updates: The usable updates by client.
            sent: The whole model that the clients were sent.
        """
        self.last_signals = None
        if updates:
            parameters = of_kind(sent, Kind.PARAMETER)
            frozen = self.phase is Phase.CALIBRATION
            self.last_signals = self.signals.observe(updates, parameters, frozen=frozen)
        return self.last_signals

    def metrics(self, signals: Signals | None) -> dict[str, float | int]:
        """Return the metrics of a round: its signals, and how often the run went back to T*."""
        retries = self.switch.guard.retries
        counts = {"fixbn-retries": retries} if retries else {}
        return {**(signals.as_metrics() if signals else {}), **counts}

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
