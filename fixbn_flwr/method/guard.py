"""Notice that a run falls apart after the switch, and say with what to try again.

A learning rate that works with mini-batch statistics can be far too large for frozen ones. The
model is then lost within a few steps. The guard watches the first rounds of calibration. If the run
falls apart, it goes back to the end of round T* and tries again with a smaller learning rate, at
most three times. Then it goes on without freezing.
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
LONGER = 1.25  # times the longest update of exploration
MUCH_LONGER = 4.0  # likewise, where clients report no loss
HIGHER = 1.2  # times the highest training loss of exploration
RISEN = 2.0  # times the lowest training loss of calibration
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
    _longest: float = field(default=0.0, init=False)
    _highest: float = field(default=0.0, init=False)
    _since: int | None = field(default=None, init=False)
    _first: float | None = field(default=None, init=False)  # training losses of this try
    _lowest: float = field(default=0.0, init=False)

    def observe(self, signals: Signals) -> None:
        """Take the signals of a round of exploration."""
        self._longest = max(self._longest, signals.update_norm)
        self._highest = max(self._highest, signals.train_loss or 0.0)

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
        if diverged or signals is None:
            return diverged
        loss = signals.train_loss
        longer = signals.update_norm > LONGER * self._longest
        if loss is None:
            return signals.update_norm > MUCH_LONGER * self._longest > 0
        if self._first is None:
            self._first = self._lowest = loss
        # All that was learned since the switch is lost again.
        lost = loss > self._first and loss > RISEN * self._lowest
        self._lowest = min(self._lowest, loss)
        return lost or not math.isfinite(loss) or (longer and loss > HIGHER * self._highest)

    def go_back(self, server_round: int, last_exploration_round: int) -> str:
        """Discard the rounds of calibration so far; return what happens next, for the log."""
        self.discarded = (last_exploration_round, server_round)
        self._since, self._first = server_round, None
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
        state = asdict(self)
        return {name: value for name, value in state.items() if name not in _GIVEN}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned."""
        vars(self).update(state)
        self.discarded = state["discarded"] and tuple(state["discarded"])
