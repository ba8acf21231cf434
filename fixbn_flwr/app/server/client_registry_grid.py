"""A Grid that knows the run's clients by their data, and lists them in a stable order.

Flower assigns random node ids in every run. In their order, the same seed would sample other
clients and add the same floats in another order. This Grid asks each client once what it trains on,
and lists clients by partition; clients with their own data by name, then by node id, which is
stable for a node with a registered key. It also

- raises an error if clients are missing for too long, where Flower waits forever,
- logs which clients connect, disconnect or do not reply,
- counts the bytes of the arrays it sends and receives.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence

from flwr.app import Error, Message
from flwr.serverapp import Grid

from fixbn_flwr.app.server.client_properties import ClientProperties, properties_request
from fixbn_flwr.errors import ClientsMissingError, ConfigError
from fixbn_flwr.flower_compat import ErrorCode
from fixbn_flwr.log import logger
from fixbn_flwr.transport.delegating_grid import DelegatingGrid

PATIENCE = 120.0  # seconds to wait for missing clients
ANSWER = 600.0  # seconds for all clients to report their properties: the first one loads the data
_POLL = 0.5  # seconds between two looks at the connected nodes


class ClientRegistryGrid(DelegatingGrid):
    """A Grid that lists clients in the order of their :class:`ClientProperties`.

    Args:
        grid: Flower's Grid.
        class_names: The classes that a client's own data must have. Default: any.
        input_size: The channels, height and width that images must have. Default: as with the
            first client.
        patience: Seconds to wait for missing clients, at the start and in each round. Default: 120.

    Attributes:
        needed: The number of clients that a round needs. Default: 1.
        bytes_sent: The size of all arrays sent to clients so far.
        bytes_received: The size of all arrays received from them.
    """

    def __init__(
        self,
        grid: Grid,
        class_names: Sequence[str] = (),
        input_size: tuple[int, int, int] | None = None,
        *,
        patience: float | None = None,
    ) -> None:
        super().__init__(grid)
        self.needed = 1
        self.bytes_sent = 0
        self.bytes_received = 0
        self._class_names = class_names
        self._input_size = input_size
        self._patience = PATIENCE if patience is None else patience
        self._clients: dict[int, ClientProperties] = {}
        self._assembled = False
        self._rejected: set[int] = set()
        self._connected: list[int] = []
        self._short_since: float | None = None

    def assemble(self, own_data: int = 1, at_least: int | None = None) -> list[ClientProperties]:
        """Wait until each partition has its client, and return all clients in their order.

        Args:
            own_data: The number of clients to wait for if they train on their own data. Default: 1.
            at_least: The number of them that is enough after a while. Default: all.

        Raises:
            ClientsMissingError: If some do not connect in time.
            ConfigError: If a client cannot start, or two train on the same partition.
        """
        started = time.monotonic()
        while True:
            present = [self._clients[node_id] for node_id in self._meet_new_nodes()]
            expected = max((client.partitions or own_data for client in present), default=1)
            late = time.monotonic() - started > self._patience
            if late and at_least and not any(client.partitions for client in present):
                if at_least <= len(present) < expected:
                    logger.warning(
                        "%s of %s clients are connected: the run goes on without the others, who "
                        "can join later", len(present), expected,
                    )  # fmt: skip
                expected = at_least
            if len(present) >= expected:
                self._assembled = True
                for client in sorted(present):
                    if client.name:
                        who = (client.node_id, client.name, client.examples)
                        logger.info("client %s is %s, with %s images", *who)
                _warn_of_duplicate_names(present)
                return sorted(present)
            if late:
                raise self._missing(len(present), expected)
            time.sleep(_POLL)

    def get_node_ids(self) -> list[int]:
        """Return the connected clients in their order.

        Raises:
            ClientsMissingError: If fewer than ``needed`` are connected for too long.
        """
        connected = self._meet_new_nodes()
        if len(connected) >= self.needed:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = time.monotonic()
        elif time.monotonic() - self._short_since > self._patience:
            raise self._missing(len(connected), self.needed)
        return sorted(connected, key=lambda node_id: self._clients[node_id])

    def label_of(self, node_id: int) -> str:
        """Return the name of a client in metrics."""
        return self._clients[node_id].label

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages, return the replies, and count the bytes of the arrays."""
        messages = list(messages)
        started = time.monotonic()
        self.bytes_sent += sum(_bytes_of(message) for message in messages)
        replies = self._exchange(messages, timeout)
        self.bytes_received += sum(_bytes_of(reply) for reply in replies)
        replied = {reply.metadata.src_node_id for reply in replies}
        for message in messages:
            if message.metadata.dst_node_id not in replied:
                logger.warning(
                    "%s timed out after %.0f seconds: the round ends without it, and a later reply "
                    "is ignored",
                    self._label(message.metadata.dst_node_id),
                    time.monotonic() - started,
                )
        return replies

    def _meet_new_nodes(self) -> list[int]:
        """Ask new nodes for their properties; return all connected clients."""
        connected = list(self._grid.get_node_ids())
        self._rejected.intersection_update(connected)  # a node that reconnects is asked again
        met = self._clients.keys() | self._rejected
        new = [node_id for node_id in connected if node_id not in met]
        if not self._clients:
            # A cause that stops one client mostly stops all: report it once.
            self._meet(new[:1])
            del new[:1]
        self._meet(new)
        known = self._one_per_partition([n for n in connected if n in self._clients])
        if self._assembled:
            for node_id in set(self._connected) - set(known):
                logger.warning("%s disconnected", self._label(node_id))
            for node_id in set(known) - set(self._connected):
                logger.info("%s joined the run", self._label(node_id))
        self._connected = known
        return known

    def _meet(self, node_ids: list[int]) -> None:
        requests = [properties_request(node_id) for node_id in node_ids]
        replies = self._exchange(requests, PATIENCE if self._assembled else ANSWER)
        if self._assembled:  # a node that does not reply must not delay every round
            self._rejected.update({*node_ids} - {r.metadata.src_node_id for r in replies})
        for reply in replies:
            node_id = reply.metadata.src_node_id
            if reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE:
                continue  # it has disconnected since
            try:
                client = ClientProperties.from_reply(reply, self._class_names, self._input_size)
                self._clients[node_id] = client
                self._input_size = client.input_size
            except ConfigError as error:
                problem = f"client {node_id} cannot start: {error}"
                if not self._assembled:
                    raise ConfigError(problem) from error
                logger.warning("%s; the run continues without it", problem)
                self._rejected.add(node_id)

    def _exchange(self, messages: list[Message], timeout: float | None) -> list[Message]:
        replies = list(self._grid.send_and_receive(messages, timeout=timeout)) if messages else []
        sent = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        for reply in replies:
            if reply.has_error():
                # For a node that is gone, the SuperLink replies as node 1.
                node_id = sent.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
                reply.metadata.__dict__["_src_node_id"] = node_id
                reason = _message_of_exception(reply.error.reason or "")
                name = self._clients[node_id].name if node_id in self._clients else ""
                reply.error = Error(reply.error.code, f"{name}: {reason}" if name else reason)
        return replies

    def _one_per_partition(self, node_ids: list[int]) -> list[int]:
        """Return the nodes, but only the newest one of each partition.

        Two nodes with one partition are a mistake at the start of a run. Later, the older one is a
        node that has restarted with another id, while Flower still lists the old id.
        """
        holders: dict[int, int] = {}
        connected = set(node_ids)
        for node_id in (met for met in self._clients if met in connected):  # the oldest first
            partition = self._clients[node_id].partition
            if partition in holders and not self._assembled:
                raise ConfigError(
                    f"clients {holders[partition]} and {node_id} both train on partition "
                    f'{partition}: give each its own in --node-config "partition-id=... '
                    'num-partitions=...".'
                )
            if partition >= 0:
                holders[partition] = node_id
        return [n for n in node_ids if holders.get(self._clients[n].partition, n) == n]

    def _label(self, node_id: int) -> str:
        name = self._clients[node_id].name if node_id in self._clients else ""
        return f"client {node_id} ({name})" if name else f"client {node_id}"

    def _missing(self, connected: int, needed: int) -> ClientsMissingError:
        return ClientsMissingError(
            f"{connected} of {needed} clients are connected after {self._patience:.0f} seconds. "
            "Start the missing SuperNodes, or require fewer: num-partitions in their "
            "--node-config, min-clients if they have their own data, or a smaller fraction-train."
        )


def _warn_of_duplicate_names(clients: list[ClientProperties]) -> None:
    for name, count in Counter(client.name for client in clients if client.name).items():
        if count > 1:
            logger.warning(
                "%s clients have the name %s: this log cannot tell them apart, and on one machine "
                "they would share their momentum. Give each its own --name or key.",
                count, name,
            )  # fmt: skip


def _message_of_exception(reason: str) -> str:
    """Return the message of a client's exception, without the class and traceback around it."""
    return reason.rpartition("Message: ")[2].rpartition(":<'")[2].removesuffix("'>").strip()


def _bytes_of(message: Message) -> int:
    if not message.has_content():
        return 0
    return sum(record.count_bytes() for record in message.content.array_records.values())
