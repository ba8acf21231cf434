"""Notice that a run falls apart after the switch, and say with what to try again.

A learning rate that works with mini-batch statistics can be far too large for frozen ones. The
model is then lost within a few steps. The guard watches the first rounds of calibration. If the run
falls apart, it goes back to the end of round T* and tries again with a smaller learning rate, at
most three times. Then it goes on without freezing.

The training loss alone does not tell: it rises with the switch in good runs too, because it is
measured with other statistics, and falls from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fixbn_flwr.method.signals import Signals

TRIES = 3  # after the first
SLOWER = 0.3  # factor for the learning rate of each
SHORTEST, SHARE = 10, 0.1  # rounds that are watched: at least, and of all rounds
RECENT = 3  # last rounds of exploration, with which calibration is compared
LONGER_AT_ONCE, LONGER = 1.5, 4.0  # times the recent updates: in the first round, and later
WORSE, IN_A_ROW = 1.1, 2  # times the loss at the switch, and for how many rounds
RISEN = 2.0  # times the lowest training loss since the switch
_GIVEN = ("num_rounds", "enabled")


@dataclass
class Guard:
    """Watches the rounds after the switch.

    Attributes:
        num_rounds: The number of rounds of the run.
        enabled: Whether it watches at all.
        retries: How often the run went back.
        given_up: Whether the run goes on without freezing.
        discarded: The rounds that do not count, from after the first number to the second.
    """

    num_rounds: int
    enabled: bool
    retries: int = field(default=0, init=False)
    given_up: bool = field(default=False, init=False)
    discarded: tuple[int, int] | None = field(default=None, init=False)
    _norms: list[float] = field(default_factory=list, init=False)  # of recent exploration
    _losses: list[float] = field(default_factory=list, init=False)
    _since: int | None = field(default=None, init=False)  # the round before this try
    _began: bool = field(default=False, init=False)
    _first_loss: float | None = field(default=None, init=False)
    _lowest_loss: float = field(default=math.inf, init=False)
    _worse: int = field(default=0, init=False)  # rounds in a row

    def observe(self, signals: Signals) -> None:
        """Take the signals of a round of exploration."""
        self._norms = [*self._norms, signals.update_norm][-RECENT:]
        if signals.train_loss is not None and math.isfinite(signals.train_loss):
            self._losses = [*self._losses, signals.train_loss][-RECENT:]

    def watches(self, server_round: int, last_exploration_round: int) -> bool:
        """Return whether the run may go back after this round of calibration."""
        since = last_exploration_round if self._since is None else self._since
        window = max(SHORTEST, round(SHARE * self.num_rounds))
        return self.enabled and not self.given_up and server_round <= since + window

    def has_failed(self, signals: Signals | None, *, diverged: bool) -> bool:
        """Return whether a round of calibration shows that the run falls apart.

        Args:
            signals: The round's signals; None without a usable reply.
            diverged: Whether most replies, or the new model, hold NaN or infinity.
        """
        if diverged or signals is None or not self._norms:
            return diverged  # with T* = 0 there was no exploration to compare with
        # Before, updates still grow with the momentum, from zero.
        at_once = not self._began and len(self._norms) == RECENT
        self._began = True
        limit = LONGER_AT_ONCE if at_once else LONGER
        if signals.update_norm > limit * max(self._norms):
            return True
        return signals.train_loss is not None and self._has_lost(signals.train_loss)

    def _has_lost(self, loss: float) -> bool:
        if self._first_loss is None:
            self._first_loss = loss
        self._lowest_loss = min(self._lowest_loss, loss)
        worse = loss > _times(WORSE, max([self._first_loss, *self._losses]))
        self._worse = self._worse + 1 if worse else 0
        # All that was learned since the switch is lost again.
        risen = loss > self._first_loss and loss > _times(RISEN, self._lowest_loss)
        return risen or self._worse == IN_A_ROW or not math.isfinite(loss)

    def go_back(self, server_round: int, last_exploration_round: int) -> str:
        """Discard the rounds of calibration so far; return what happens next, for the log."""
        self.discarded = (last_exploration_round, server_round)
        self._since, self._began = server_round, False
        self._first_loss, self._lowest_loss, self._worse = None, math.inf, 0
        self.given_up = self.retries == TRIES
        if self.given_up:
            return "the run goes on without freezing"
        self.retries += 1
        return f"try {self.retries} of {TRIES} begins, with {self.factor:.2g} times the rate"

    @property
    def factor(self) -> float:
        """What the learning rate of calibration is multiplied by, because of earlier tries."""
        return float(SLOWER**self.retries)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, for a checkpoint."""
        return {name: value for name, value in asdict(self).items() if name not in _GIVEN}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned."""
        vars(self).update(state)
        self.discarded = state["discarded"] and tuple(state["discarded"])


def _times(factor: float, loss: float) -> float:
    """Return the loss that is worse by (factor - 1) times its size, whatever its sign.

    Examples:
        >>> _times(1.5, 10.0), _times(1.5, -10.0)
        (15.0, -5.0)
    """
    return (factor if loss > 0 else 2 - factor) * loss
