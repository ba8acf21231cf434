"""The clients of a run as the server app sees them: known by partition, always in the same order.

Flower numbers nodes at random in every run, so the same seed would sample other clients and sum the
same floats in another order. This Grid asks every client once which partition it trains on and
lists clients in that order. It also gives up waiting for clients that do not come, where Flower
would wait for ever, and counts the bytes that pass.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fixbn_flwr.errors import ClientsMissingError, ConfigError
from fixbn_flwr.grid import GridAround

PATIENCE = 120.0  # seconds that missing clients are waited for
ANSWER = 600.0  # seconds for all clients to tell their partition: the first one loads the data
_POLL = 0.5  # seconds between two looks


@dataclass(frozen=True)
class Member:
    """One client: which partition it trains on, of how many, and its number of images."""

    partition: int
    partitions: int
    examples: int


class Federation(GridAround):
    """A Grid whose clients come in the order of their partitions.

    Args:
        grid: Flower's own.
        patience: seconds to wait for missing clients, at the start and in every round.

    Attributes:
        bytes_sent: of all arrays in messages to clients so far.
        bytes_received: of all arrays in their replies.
    """

    def __init__(self, grid: Grid, patience: float | None = None) -> None:
        super().__init__(grid)
        self._patience = PATIENCE if patience is None else patience
        self._members: dict[int, Member] = {}
        self._needed = 1
        self._short_since: float | None = None
        self.bytes_sent = 0
        self.bytes_received = 0

    def assemble(self) -> list[Member]:
        """Wait until every partition has its client, and return the members by partition.

        Raises:
            ClientsMissingError: some did not connect in time.
            ConfigError: a client cannot start, or two train on the same partition.
        """
        started = time.monotonic()
        while True:
            self._meet_new_nodes()
            expected = max((member.partitions for member in self._members.values()), default=1)
            if len(self._members) >= expected:
                return sorted(self._members.values(), key=lambda member: member.partition)
            if time.monotonic() - started > self._patience:
                raise self._missing(len(self._members), expected)
            time.sleep(_POLL)

    def need(self, clients: int) -> None:
        """Say how many clients a round needs; ``get_node_ids`` waits for no more than that."""
        self._needed = clients

    def get_node_ids(self) -> list[int]:
        """Return the connected clients in the order of their partitions.

        Raises:
            ClientsMissingError: fewer than a round needs for longer than the patience.
        """
        connected = self._meet_new_nodes()
        if len(connected) >= self._needed:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = time.monotonic()
        elif time.monotonic() - self._short_since > self._patience:
            raise self._missing(len(connected), self._needed)
        return sorted(connected, key=lambda node_id: self._members[node_id].partition)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Exchange messages for replies, as Flower does, and count the arrays' bytes."""
        messages = list(messages)
        self.bytes_sent += sum(_bytes_of(message) for message in messages)
        replies = self._exchange(messages, timeout)
        self.bytes_received += sum(_bytes_of(reply) for reply in replies)
        return replies

    def _meet_new_nodes(self) -> list[int]:
        """Ask nodes not seen before which partition they train on; return all connected nodes."""
        connected = list(self._grid.get_node_ids())
        strangers = [node_id for node_id in connected if node_id not in self._members]
        if not self._members:
            # What stops one client mostly stops them all: it is heard once, not a thousand times.
            self._meet(strangers[:1])
            del strangers[:1]
        self._meet(strangers)
        known = [node_id for node_id in connected if node_id in self._members]
        self._check_distinct(known)
        return known

    def _meet(self, strangers: list[int]) -> None:
        question = RecordDict({"getpropertiesins.config": ConfigRecord()})
        asked = [
            Message(question, dst_node_id=node_id, message_type="get_properties")
            for node_id in strangers
        ]
        for answer in self._exchange(asked, ANSWER):
            node_id = answer.metadata.src_node_id
            if answer.has_error():
                raise ConfigError(f"client {node_id} cannot start: {answer.error.reason}")
            properties = answer.content.config_records["getpropertiesres.properties"]
            self._members[node_id] = Member(
                partition=int(str(properties["partition-id"])),
                partitions=int(str(properties["num-partitions"])),
                examples=int(str(properties["examples"])),
            )

    def _exchange(self, messages: list[Message], timeout: float | None) -> list[Message]:
        replies = list(self._grid.send_and_receive(messages, timeout=timeout)) if messages else []
        for reply in replies:
            if reply.has_error():
                reply.error = Error(reply.error.code, _last_words(reply.error.reason or ""))
        return replies

    def _check_distinct(self, node_ids: list[int]) -> None:
        holders: dict[int, int] = {}
        for node_id in node_ids:
            partition = self._members[node_id].partition
            if partition in holders:
                raise ConfigError(
                    f"clients {holders[partition]} and {node_id} both train on partition "
                    f'{partition}: give each its own in --node-config "partition-id=... '
                    'num-partitions=...".'
                )
            holders[partition] = node_id

    def _missing(self, connected: int, needed: int) -> ClientsMissingError:
        return ClientsMissingError(
            f"{connected} of {needed} clients are connected after {self._patience:.0f} seconds. "
            "Start the missing SuperNodes, or ask for fewer: num-partitions in their "
            "--node-config, or a smaller fraction-train."
        )


def _last_words(reason: str) -> str:
    """What a client's exception said, without the class, and traceback, that Flower puts first."""
    return reason.rpartition("Message: ")[2].rpartition(":<'")[2].removesuffix("'>").strip()


def _bytes_of(message: Message) -> int:
    if not message.has_content():
        return 0
    return sum(record.count_bytes() for record in message.content.array_records.values())
