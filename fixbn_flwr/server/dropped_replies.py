"""Replies that are not averaged: why each was dropped, and what to do about it.

Clients report errors in the words of Flower or Python. The most common mistakes are recognized
here, and the log says how to fix them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fixbn_flwr.errors import NotFiniteError, ReplyError
from fixbn_flwr.log import logger, shortened
from fixbn_flwr.method.server_rules import PARAMETERS_ONLY

_REMEDIES = {
    r"fitins\.parameters": (
        "These clients are NumPyClients and the strategy is of the Message API: add "
        "mods=[numpy_client_mod] from fixbn_flwr to their ClientApp(client_fn=...), as the last of "
        "the mods."
    ),
    r"KeyError.*'(arrays|config)'": (
        'These clients are of the Message API and look for records "arrays" and "config". A '
        "Message API strategy (fixbn_flwr.FixBN around one of flwr.serverapp.strategy) sends them "
        "unless its arrayrecord_key or configrecord_key is another. A strategy of the older "
        "generation (flwr.server.strategy) never does."
    ),
    r"secaggplus_configs": (
        "secagg_mod and secaggplus_mod only work with the older generation's SecAggPlusWorkflow. A "
        "Message API strategy cannot run their protocol: remove the mod."
    ),
    r"expects exactly one ArrayRecord|requires the key 'clipping_norm'": PARAMETERS_ONLY,
    r"Cannot cast ufunc '(multiply|add)'|is a variance and holds": PARAMETERS_ONLY,
}


@dataclass(frozen=True)
class DroppedReply:
    """A reply that is not averaged.

    Attributes:
        client: The client's node id, or its name in the older generation. The SuperLink answers
            for all clients that are gone, as client 1.
        reason: Why the reply was dropped.
        diverged: Whether it holds NaN or infinity.
    """

    client: int | str
    reason: str
    diverged: bool = False

    @classmethod
    def for_error(cls, client: int | str, error: ReplyError) -> DroppedReply:
        """Return the record of a reply that failed a check."""
        return cls(client, shortened(str(error)), isinstance(error, NotFiniteError))


def remedies_for(dropped: Iterable[DroppedReply]) -> list[str]:
    """Return the known remedies for the clients' errors, each once."""
    reasons = "\n".join(reply.reason for reply in dropped)
    found = [remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, reasons)]
    return list(dict.fromkeys(found))


def log_dropped(server_round: int, dropped: Iterable[DroppedReply]) -> None:
    """Log which replies of a round were dropped and why, and the known remedies."""
    dropped = list(dropped)
    for reply in dropped:
        logger.warning(
            "round %s: reply dropped, client %s: %s", server_round, reply.client, reply.reason
        )
    for remedy in remedies_for(dropped):
        logger.warning("round %s: %s", server_round, remedy)
