"""Rounds without a new model: one is tolerated, a run in which nothing trains is stopped.

Flower reports such a run as completed, whatever happened to its clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fixbn_flwr.errors import RoundsFailedError
from fixbn_flwr.log import logger
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.server.dropped_replies import DroppedReply, remedies_for
from fixbn_flwr.server.inserted_classes import is_users_own

FAILED_ROUNDS_IN_A_ROW = 3

_DIVERGED = (
    "the run diverged in calibration. A learning rate that works with mini-batch statistics can be "
    "far too large for frozen ones: use a smaller learning_rate_factor, a tenth of the current "
    "one. The app still has the checkpoint of T*: remove the later checkpoints and resume the run "
    'with may-change="learning-rate-factor"'
)


@dataclass(frozen=True)
class FailedAggregation:
    """Usable updates that did not become a new model.

    Attributes:
        reason: What happened, for the log.
        diverged: Whether the result holds NaN or infinity.
        by_design: Whether a user's own strategy chose it, as one that waits for more updates does.
    """

    reason: str
    diverged: bool = False
    by_design: bool = False

    @classmethod
    def without_model(
        cls, strategy: object, usable: int, *, flower_failed: bool
    ) -> FailedAggregation:
        """Return the failure of a strategy that returned no model, as Flower's code in it did."""
        name, by_design = type(strategy).__name__, is_users_own(strategy) and not flower_failed
        hint = (
            " (if it should have, its aggregation must return the new arrays)"
            if by_design
            else ", see its own warning"
        )
        return cls(f"{name} made no model from {usable} usable replies{hint}", by_design=by_design)

    @classmethod
    def not_finite(cls, strategy: object, array: str) -> FailedAggregation:
        """Return the failure of a strategy whose model holds NaN or infinity in an array."""
        return cls(
            f"{type(strategy).__name__} produced NaN or infinity from finite updates, first in "
            f"{array!r}; lower the server or client learning rate, or, if the array holds infinity "
            "by design, as a mask does, use a large number instead",
            diverged=True,
        )


def has_diverged(
    dropped: Sequence[DroppedReply], failure: FailedAggregation | None, sampled: int
) -> bool:
    """Return whether most of a round's replies, or the new model, hold NaN or infinity."""
    replies = sum(reply.diverged for reply in dropped)
    return 2 * replies > sampled or (failure is not None and failure.diverged)


class FailedRounds:
    """Counts rounds without a new model.

    Args:
        ever_succeeded: Whether an earlier round had one, in a run that was resumed.
    """

    def __init__(self, ever_succeeded: bool = False) -> None:
        self._in_a_row = 0
        self._ever_succeeded = ever_succeeded

    def count(
        self,
        server_round: int,
        usable: int,
        dropped: Sequence[DroppedReply],
        *,
        failure: FailedAggregation | None = None,
        phase: Phase = Phase.EXPLORATION,
    ) -> None:
        """Record the outcome of a round.

        Args:
            server_round: The round, counted from 1.
            usable: The number of usable updates.
            dropped: The other replies.
            failure: Why there is no new model although there were usable updates, or before any
                could arrive. None (the default) if there is a new model.
            phase: The round's phase.

        Raises:
            RoundsFailedError: If the round brought no new model, other than by design, and none
                ever did or this is the third such round in a row. The message has every client's
                reason and the known remedies.
        """
        if usable and failure is None:
            self._in_a_row, self._ever_succeeded = 0, True
            return
        by_design = failure is not None and failure.by_design
        self._in_a_row += not by_design
        what = failure.reason if failure else "no client returned a usable update"
        if by_design or (self._ever_succeeded and self._in_a_row < FAILED_ROUNDS_IN_A_ROW):
            logger.warning("round %s: %s; the model stays as it is", server_round, what)
            return
        reasons = [f"client {reply.client}: {reply.reason}" for reply in dropped]
        # Some of the other clients may only be gone.
        most_diverged = 2 * sum(reply.diverged for reply in dropped) > len(dropped)
        model_diverged = failure is not None and failure.diverged
        if (most_diverged or model_diverged) and phase is Phase.CALIBRATION:
            what = f"{what}: {_DIVERGED}"
        if not usable and not reasons and failure is None:
            reasons = ["no reply arrived before the timeout"]
        raise RoundsFailedError(
            f"round {server_round}: {what} ({self._in_a_row} such rounds in a row). The global "
            "model is unchanged. Fix the clients, then start again or resume from a checkpoint:"
            "\n  " + "\n  ".join([*reasons, *remedies_for(dropped)]),
            diverged=model_diverged or any(reply.diverged for reply in dropped),
        )
