"""Rounds in which no client delivered: one is borne, a run in which nothing is trained is stopped.

Flower calls such a run completed, whatever happened to its clients.
"""

from __future__ import annotations

from collections.abc import Mapping

from fixbn_flwr.errors import RoundsFailedError
from fixbn_flwr.server_state import logger

FAILED_ROUNDS_IN_A_ROW = 3


class FailedRounds:
    """Counts rounds without a usable update."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._ever_succeeded = False

    def count(self, server_round: int, usable: int, problems: Mapping[int, str]) -> None:
        """Take note of a round.

        Args:
            server_round: the round, counted from 1.
            usable: how many updates are averaged.
            problems: why each other reply is not, by client.

        Raises:
            RoundsFailedError: no update was usable, and either none ever was or this is the third
                such round in a row. The message gives every client's reason.
        """
        if usable:
            self._in_a_row, self._ever_succeeded = 0, True
            return
        self._in_a_row += 1
        if self._ever_succeeded and self._in_a_row < FAILED_ROUNDS_IN_A_ROW:
            logger.warning("round %s: no usable update, the model stays as it is", server_round)
            return
        reasons = [f"client {client}: {why}" for client, why in problems.items()]
        reasons = reasons or ["no reply arrived before the timeout"]
        raise RoundsFailedError(
            f"round {server_round}: no client delivered a usable update ({self._in_a_row} such "
            "rounds in a row); the global model is as it was. Mend the clients and start again:\n  "
            + "\n  ".join(reasons)
        )
