"""Replies that are not averaged: why each was dropped, and what to do about it.

Clients report errors in the words of Flower or Python. The most common mistakes are recognised
here, and the log says how to fix them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fixbn_flwr.errors import NoExamplesError, NotFiniteError, ReplyError
from fixbn_flwr.log import logger, shortened
from fixbn_flwr.method.server_rules import PARAMETERS_ONLY

_REMEDIES = {
    r"fitins\.parameters": (
        "These clients are NumPyClients and the strategy is of the Message API: add "
        "mods=[numpy_client_mod] from fixbn_flwr to their ClientApp(client_fn=...), as the last of "
        "the mods. If it is there, leave the strategy's arrayrecord_key and configrecord_key at "
        "their defaults."
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
    r"Expected more than 1 value per channel when training": (
        "Batch normalization cannot train on a batch of one example: use a larger batch size, or "
        "drop_last=True in the DataLoader. With frozen statistics, after T*, such a batch trains."
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
        no_examples: Whether the client has no data to train on.
    """

    client: int | str
    reason: str
    diverged: bool = False
    no_examples: bool = False

    @classmethod
    def for_error(cls, client: int | str, error: ReplyError) -> DroppedReply:
        """Return the record of a reply that failed a check."""
        return cls(
            client,
            shortened(str(error)),
            diverged=isinstance(error, NotFiniteError),
            no_examples=isinstance(error, NoExamplesError),
        )


def remedies_for(dropped: Iterable[DroppedReply]) -> list[str]:
    """Return the known remedies for the clients' errors, each once."""
    reasons = "\n".join(reply.reason for reply in dropped)
    found = [remedy for pattern, remedy in _REMEDIES.items() if re.search(pattern, reasons)]
    return list(dict.fromkeys(found))


class DroppedReplyLog:
    """Logs dropped replies and notes about others; what stays the same for a client only once."""

    def __init__(self) -> None:
        self._said: set[tuple[int | str, str]] = set()

    def add(self, server_round: int, dropped: Iterable[DroppedReply]) -> None:
        """Log which replies of a round were dropped and why, and the known remedies."""
        dropped = list(dropped)
        for reply in dropped:
            if reply.no_examples:
                self.note(reply.client, reply.reason)
            else:
                logger.warning(
                    "round %s: reply dropped, client %s: %s",
                    server_round, reply.client, reply.reason,
                    extra={"dropped_reply": (server_round, reply)},  # for handlers
                )  # fmt: skip
        for remedy in remedies_for(dropped):
            logger.warning("round %s: %s", server_round, remedy)

    def note(self, client: int | str, text: str) -> None:
        """Log a line about a client, once."""
        if (client, text) not in self._said:
            self._said.add((client, text))
            logger.warning("client %s %s", client, text)
