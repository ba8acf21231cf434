"""The switch from exploration to calibration: when it comes, and what follows if it goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fixbn_flwr.log import logger
from fixbn_flwr.method.freeze_rule import MUCH_SMALLER, FreezeRule
from fixbn_flwr.method.guard import Guard
from fixbn_flwr.method.schedule import AUTO, FreezeAfter, Phase, freeze_round, phase_of
from fixbn_flwr.method.signals import Signals

LearningRateFactor = float | Literal["auto"]
SAFE_FACTOR = 0.1  # of the learning rate of exploration, for frozen statistics


class Switch:
    """Decides each round's phase and learning-rate factor.

    Args:
        freeze_after: T*, as rounds, as a share of the rounds, or "auto".
        learning_rate_factor: The factor in calibration, or "auto".
        guard: Whether a run that falls apart goes back to T*.

    Attributes:
        freeze_round: T*. None while it is not decided; the number of rounds or more if nothing is
            frozen.
        reason: Why T* is what it is; empty unless the run decided it.
    """

    def __init__(
        self, freeze_after: FreezeAfter, learning_rate_factor: LearningRateFactor, *, guard: bool
    ) -> None:
        self.freeze_after = freeze_after
        self.freeze_round = freeze_after if isinstance(freeze_after, int) else None
        self.reason = ""
        self._factor = None if isinstance(learning_rate_factor, str) else learning_rate_factor
        self._given_factor = self._factor
        self._guarded = guard
        self._begin(num_rounds=None)

    @property
    def is_ready(self) -> bool:
        """Whether the phase of every round is known, or will be decided."""
        return self.freeze_round is not None or self._num_rounds is not None

    def start(self, num_rounds: int) -> None:
        """Begin a run, and forget any earlier one."""
        self.freeze_round = None
        if self.freeze_after != AUTO:
            self.freeze_round = freeze_round(self.freeze_after, num_rounds)
        self.reason, self._factor = "", self._given_factor
        self._begin(num_rounds)

    def _begin(self, num_rounds: int | None) -> None:
        self._num_rounds = num_rounds
        self._rule = FreezeRule(num_rounds or 0)
        self.guard = Guard(num_rounds or 0, self._guarded)

    def phase(self, server_round: int) -> Phase:
        """Return the phase of a round."""
        if self.freeze_round is None or self.guard.given_up:
            return Phase.EXPLORATION
        return phase_of(server_round, self.freeze_round)

    def factor(self, server_round: int) -> float:
        """Return what clients multiply their learning rates by in a round."""
        if self.phase(server_round) is Phase.EXPLORATION:
            return 1.0
        if self._factor is None:
            # The schedule may have lowered the rate already: updates are then much smaller.
            fallen = self._rule.update_share < MUCH_SMALLER
            self._factor = 1.0 if fallen else SAFE_FACTOR
        return float(self._factor * self.guard.factor)

    def kept_round(self, server_round: int) -> int | None:
        """Return T* while the run may go back to it; clients keep their momentum of it."""
        if self.freeze_round is None or self.phase(server_round) is Phase.EXPLORATION:
            return None
        watches = self.guard.watches(server_round, self.freeze_round)
        return self.freeze_round if watches else None

    def end_round(self, server_round: int, signals: Signals | None, *, diverged: bool) -> bool:
        """Take the outcome of a round; return whether the run goes back to the end of round T*.

        Args:
            server_round: The round, counted from 1.
            signals: Its signals; None without a usable reply.
            diverged: Whether most replies, or the new model, hold NaN or infinity.
        """
        if self.phase(server_round) is Phase.CALIBRATION:
            return self._goes_back(server_round, signals, diverged=diverged)
        if signals is not None and not self.guard.given_up:
            self._rule.observe(server_round, signals)
            self.guard.observe(signals)
        if self.freeze_round is None:
            self._decide(server_round)
        if server_round == self._num_rounds and self.advice:
            logger.info("FixBN: %s", self.advice)
        return False

    def _decide(self, server_round: int) -> None:
        decision = self._rule.decide(server_round)
        if decision is None:
            return
        self.freeze_round = server_round if decision.freezes else self._num_rounds
        self.reason = decision.reason
        what = f"T* = {server_round}" if decision.freezes else "the statistics are never frozen"
        logger.info("FixBN: %s, decided after round %s: %s", what, server_round, self.reason)

    def _goes_back(self, server_round: int, signals: Signals | None, *, diverged: bool) -> bool:
        last = self.kept_round(server_round)
        if last is None or not self.guard.has_failed(signals, diverged=diverged):
            return False
        what = "its replies, or the new model, hold NaN or infinity"
        if signals is not None and not diverged:
            what = f"loss {signals.train_loss}, updates of length {signals.update_norm:.3g}"
        following = self.guard.go_back(server_round, last)
        logger.warning(
            "round %s: the run falls apart with frozen statistics (%s). It goes back to the end of "
            "round %s: %s", server_round, what, last, following,
        )  # fmt: skip
        return True

    @property
    def advice(self) -> str:
        """What freezing is likely to do in a run that never freezes; empty in others."""
        never = isinstance(self.freeze_after, float) and self.freeze_after == 1.0  # 1 is round 1
        outlook = self._rule.outlook() if never else None
        if outlook is None:
            return ""
        return f"{self._rule.description()}: freezing the statistics is likely to {outlook} here"

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, for a checkpoint."""
        return {
            "freeze_round": self.freeze_round,
            "reason": self.reason,
            "factor": self._factor,
            "rule": self._rule.state(),
            "guard": self.guard.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned."""
        if self.freeze_after == AUTO:
            self.freeze_round = state["freeze_round"]
            self.reason = state["reason"]
        if self._given_factor is None:
            self._factor = state["factor"]
        self._rule.restore(state["rule"])
        self.guard.restore(state["guard"])
