"""Rounds in which no client delivered: one is borne, a run in which nothing is trained is stopped.

Flower calls such a run completed, whatever happened to its clients. What went wrong, a client says
in the words of Flower or Python; the commonest mistakes are named here in words that mend them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fixbn_flwr.errors import RoundsFailedError
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.method.server_rules import PARAMETERS_ONLY, logger
from fixbn_flwr.server.reply_checks import NOT_FINITE

FAILED_ROUNDS_IN_A_ROW = 3

# Who and why. Not by client: the SuperLink answers for every client that is gone, as client 1.
Problem = tuple[int | str, str]
Problems = Sequence[Problem]

MADE_INFINITY = "made NaN or infinity of finite replies"

_REMEDIES = {
    r"fitins\.parameters": (
        "These clients are NumPyClients, and the strategy is of the Message API: add "
        "mods=[numpy_client_mod] of fixbn_flwr to their ClientApp(client_fn=...), last in "
        "the list if it is not alone."
    ),
    r"KeyError.*'(arrays|config)'": (
        'These clients are of the Message API and look for records "arrays" and "config": a '
        "Message API strategy (fixbn_flwr.FixBN around one of flwr.serverapp.strategy) sends them, "
        "unless its arrayrecord_key or configrecord_key is another, and one of the older "
        "generation (flwr.server.strategy) never does."
    ),
    r"secaggplus_configs": (
        "secagg_mod and secaggplus_mod answer the older generation's SecAggPlusWorkflow only. A "
        "Message API strategy cannot run their protocol: leave the mod out."
    ),
    r"expects exactly one ArrayRecord|requires the key 'clipping_norm'": PARAMETERS_ONLY,
    r"Cannot cast ufunc '(multiply|add)'|is a variance and holds": PARAMETERS_ONLY,
}


_DIVERGED = (
    "the run diverged in calibration. A learning rate that mini-batch statistics bear can be far "
    "too large for frozen ones: use a smaller learning_rate_factor, a tenth of what it is. The app "
    "still has the checkpoint of T*: remove the later ones, resume the run, and let "
    "learning-rate-factor change"
)


def remedies_for(reasons: Iterable[str]) -> list[str]:
    """Return what to do about the clients' errors, as far as they are known; each remedy once."""
    said = "\n".join(reasons)
    found = [remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, said)]
    return list(dict.fromkeys(found))


def log_problems(server_round: int, problems: Problems) -> None:
    """Say which replies of a round were dropped, why, and what to do where that is known."""
    for client, why in problems:
        logger.warning("round %s: reply dropped, client %s: %s", server_round, client, why)
    for remedy in remedies_for(why for _, why in problems):
        logger.warning("round %s: %s", server_round, remedy)


def made_no_model(strategy: object, usable: int) -> str:
    """Say that a wrapped strategy made no model of a round's usable updates."""
    name = type(strategy).__name__
    return f"{name} made no model of {usable} usable replies, see its own warning"


def made_infinity(strategy: object, name: str) -> str:
    """Say that finite updates came to an array that is not."""
    return (
        f"{type(strategy).__name__} {MADE_INFINITY}, first in {name!r}: a "
        "smaller learning rate of the server, or of the clients, keeps numbers within bounds"
    )


class FailedRounds:
    """Counts rounds without a usable update.

    Args:
        ever_succeeded: whether there was a round with one before, in a run that was resumed.
    """

    def __init__(self, ever_succeeded: bool = False) -> None:
        self._in_a_row = 0
        self._ever_succeeded = ever_succeeded

    def count(
        self,
        server_round: int,
        usable: int,
        problems: Problems,
        *,
        failure: str | None = None,
        phase: Phase = Phase.EXPLORATION,
    ) -> None:
        """Take note of a round.

        Args:
            server_round: the round, counted from 1.
            usable: how many updates are averaged.
            problems: why each other reply is not.
            failure: why there is no new model in spite of usable updates, or before any could come;
                None when there is one.
            phase: the round's.

        Raises:
            RoundsFailedError: the round brought no new model, and either none ever did or this is
                the third such round in a row. The message gives every client's reason, and the
                remedy where it is known.
        """
        if usable and failure is None:
            self._in_a_row, self._ever_succeeded = 0, True
            return
        self._in_a_row += 1
        what = failure or "no client delivered a usable update"
        if self._ever_succeeded and self._in_a_row < FAILED_ROUNDS_IN_A_ROW:
            logger.warning("round %s: %s, the model stays as it is", server_round, what)
            return
        reasons = [f"client {client}: {why}" for client, why in problems]
        # Beside those whose training diverged there may be some that are gone.
        diverged = 2 * sum(NOT_FINITE in why for _, why in problems) > len(problems)
        diverged = diverged or MADE_INFINITY in what
        if diverged and phase is Phase.CALIBRATION:
            what = f"{what}: {_DIVERGED}"
        if not usable and not reasons and failure is None:
            reasons = ["no reply arrived before the timeout"]
        raise RoundsFailedError(
            f"round {server_round}: {what} ({self._in_a_row} such rounds in a row); the global "
            "model is as it was. Mend the clients and start again, or resume from a checkpoint:\n  "
            + "\n  ".join([*reasons, *remedies_for(reasons)])
        )
