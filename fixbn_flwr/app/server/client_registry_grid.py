"""The clients of a run as the server app sees them: known by what they hold, in a lasting order.

Flower numbers nodes at random in every run, so the same seed would sample other clients and sum the
same floats in another order. This Grid asks every client once which partition it trains on and
lists clients in that order; those with data of their own by name, then by node id, which lasts as
long as a registered key. It also gives up waiting for clients that do not come, where Flower would
wait for ever, says who has come, gone or not answered, and counts the bytes that pass.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fixbn_flwr.errors import ClientsMissingError, ConfigError
from fixbn_flwr.transport.delegating_grid import GridAround

PATIENCE = 120.0  # seconds that missing clients are waited for
ANSWER = 600.0  # seconds for all clients to tell their partition: the first one loads the data
MOST_CLIENTS = 1_000_000  # that a node may claim there are
_POLL = 0.5  # seconds between two looks

_logger = logging.getLogger("flwr.fixbn")


@dataclass(frozen=True, order=True)
class Member:
    """One client, in the order in which clients are listed.

    Attributes:
        partition: which part of the shared data it trains on; -1: on data of its own.
        partitions: how many parts there are; 0 with data of its own.
        examples: its number of images.
        name: how its node is called; empty when it has no name.
        node_id: Flower's number of it.
    """

    partition: int
    partitions: int
    examples: int = field(compare=False)
    name: str = ""
    node_id: int = 0


class Federation(GridAround):
    """A Grid whose clients come in a lasting order, see :class:`Member`.

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
        self._assembled = False
        self._unfit: set[int] = set()
        self._connected: list[int] = []
        self._needed = 1
        self._short_since: float | None = None
        self.bytes_sent = 0
        self.bytes_received = 0

    def assemble(self, own_data: int = 1) -> list[Member]:
        """Wait until every partition has its client, and return the members in their order.

        Args:
            own_data: how many clients to wait for where clients train on data of their own.

        Raises:
            ClientsMissingError: some did not connect in time.
            ConfigError: a client cannot start, or two train on the same partition.
        """
        started = time.monotonic()
        while True:
            present = [self._members[node_id] for node_id in self._meet_new_nodes()]
            expected = max((member.partitions or own_data for member in present), default=1)
            if len(present) >= expected:
                self._assembled = True
                for member in sorted(present):
                    if member.name:
                        who = (member.node_id, member.name, member.examples)
                        _logger.info("client %s is %s, with %s images", *who)
                self._warn_of_namesakes(present)
                return sorted(present)
            if time.monotonic() - started > self._patience:
                raise self._missing(len(present), expected)
            time.sleep(_POLL)

    def _warn_of_namesakes(self, present: list[Member]) -> None:
        for name, count in Counter(member.name for member in present if member.name).items():
            if count > 1:
                _logger.warning(
                    "%s clients are called %s: nobody can tell them apart in this log, and on one "
                    "machine they would share their momentum. Give each a --name, or a key, of "
                    "its own",
                    count, name,
                )  # fmt: skip

    def need(self, clients: int) -> None:
        """Say how many clients a round needs; ``get_node_ids`` waits for no more than that."""
        self._needed = clients

    def get_node_ids(self) -> list[int]:
        """Return the connected clients in their order.

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
        return sorted(connected, key=lambda node_id: self._members[node_id])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Exchange messages for replies, as Flower does, and count the arrays' bytes."""
        messages = list(messages)
        started = time.monotonic()
        self.bytes_sent += sum(_bytes_of(message) for message in messages)
        replies = self._exchange(messages, timeout)
        self.bytes_received += sum(_bytes_of(reply) for reply in replies)
        answered = {reply.metadata.src_node_id for reply in replies}
        for message in messages:
            if message.metadata.dst_node_id not in answered:
                _logger.warning(
                    "%s has not answered within %.0f seconds: the round ends without it, and what "
                    "it sends later is not used",
                    self._called(message.metadata.dst_node_id),
                    time.monotonic() - started,
                )
        return replies

    def _meet_new_nodes(self) -> list[int]:
        """Ask nodes not seen before what they train on; return all connected members."""
        connected = list(self._grid.get_node_ids())
        self._unfit.intersection_update(connected)  # a node that comes back is asked again
        met = self._members.keys() | self._unfit
        strangers = [node_id for node_id in connected if node_id not in met]
        if not self._members:
            # What stops one client mostly stops them all: it is heard once, not a thousand times.
            self._meet(strangers[:1])
            del strangers[:1]
        self._meet(strangers)
        known = self._distinct([node_id for node_id in connected if node_id in self._members])
        if self._assembled:
            for node_id in set(self._connected) - set(known):
                _logger.warning("%s has gone", self._called(node_id))
            for node_id in set(known) - set(self._connected):
                _logger.info("%s takes part from now on", self._called(node_id))
        self._connected = known
        return known

    def _meet(self, strangers: list[int]) -> None:
        question = RecordDict({"getpropertiesins.config": ConfigRecord()})
        asked = [
            Message(question, dst_node_id=node_id, message_type="get_properties")
            for node_id in strangers
        ]
        answers = self._exchange(asked, PATIENCE if self._assembled else ANSWER)
        if self._assembled:  # one that says nothing must not hold up every round
            self._unfit.update({*strangers} - {a.metadata.src_node_id for a in answers})
        for answer in answers:
            node_id = answer.metadata.src_node_id
            if answer.has_error() and answer.error.code == ErrorCode.NODE_UNAVAILABLE:
                continue  # it has gone meanwhile
            try:
                self._members[node_id] = _member(answer)
            except ConfigError as error:
                problem = f"client {node_id} cannot start: {error}"
                if not self._assembled:
                    raise ConfigError(problem) from error
                _logger.warning("%s; the run goes on without it", problem)
                self._unfit.add(node_id)

    def _exchange(self, messages: list[Message], timeout: float | None) -> list[Message]:
        replies = list(self._grid.send_and_receive(messages, timeout=timeout)) if messages else []
        asked = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        for reply in replies:
            if reply.has_error():
                # The SuperLink answers as node 1 for a node that is gone.
                node_id = asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
                reply.metadata.__dict__["_src_node_id"] = node_id
                words = _last_words(reply.error.reason or "")
                name = self._members[node_id].name if node_id in self._members else ""
                reply.error = Error(reply.error.code, f"{name}: {words}" if name else words)
        return replies

    def _distinct(self, node_ids: list[int]) -> list[int]:
        """Return the nodes, the newest of those that train on one partition.

        Two of one partition are a mistake at the start; later, a node that was restarted under
        another number while Flower still counts the old one as connected.
        """
        holders: dict[int, int] = {}
        connected = set(node_ids)
        for node_id in (met for met in self._members if met in connected):  # the oldest first
            partition = self._members[node_id].partition
            if partition in holders and not self._assembled:
                raise ConfigError(
                    f"clients {holders[partition]} and {node_id} both train on partition "
                    f'{partition}: give each its own in --node-config "partition-id=... '
                    'num-partitions=...".'
                )
            if partition >= 0:
                holders[partition] = node_id
        return [
            node_id
            for node_id in node_ids
            if holders.get(self._members[node_id].partition, node_id) == node_id
        ]

    def _called(self, node_id: int) -> str:
        name = self._members[node_id].name if node_id in self._members else ""
        return f"client {node_id} ({name})" if name else f"client {node_id}"

    def _missing(self, connected: int, needed: int) -> ClientsMissingError:
        return ClientsMissingError(
            f"{connected} of {needed} clients are connected after {self._patience:.0f} seconds. "
            "Start the missing SuperNodes, or ask for fewer: num-partitions in their "
            "--node-config, min-clients where they have data of their own, or a smaller "
            "fraction-train."
        )


def _member(answer: Message) -> Member:
    """Return who a client says it is.

    Raises:
        ConfigError: it says why it cannot start, or nothing that can be understood.
    """
    if answer.has_error():
        raise ConfigError(answer.error.reason)
    try:
        properties = answer.content.config_records["getpropertiesres.properties"]
        member = Member(
            partition=int(str(properties.get("partition-id", -1))),
            partitions=int(str(properties.get("num-partitions", 0))),
            examples=int(str(properties["examples"])),
            name=str(properties.get("name", ""))[:100],
            node_id=answer.metadata.src_node_id,
        )
        if not -1 <= member.partition < max(member.partitions, 1) <= MOST_CLIENTS:
            raise ValueError(f"partition {member.partition} of {member.partitions}")
        return member
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"its get_properties says nothing that can be understood ({error!r}): install the same "
            "version of fixbn-flwr on server and clients."
        ) from error


def _last_words(reason: str) -> str:
    """What a client's exception said, without the class, and traceback, that Flower puts first."""
    return reason.rpartition("Message: ")[2].rpartition(":<'")[2].removesuffix("'>").strip()


def _bytes_of(message: Message) -> int:
    if not message.has_content():
        return 0
    return sum(record.count_bytes() for record in message.content.array_records.values())
