"""The properties that each client reports to the server app, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from fixbn_flwr.errors import ConfigError

MAX_PARTITIONS = 1_000_000  # that a node may report


@dataclass(frozen=True, order=True)
class ClientProperties:
    """What a client trains on, and its name. Clients are sorted by it.

    Attributes:
        partition: The partition of the shared data that it trains on; -1 with its own data.
        partitions: The number of partitions; 0 with its own data.
        examples: The number of the images that it trains on.
        input_size: The channels, height and width of an image.
        name: The name of its node; empty if it has none.
        node_id: Flower's id of its node.
    """

    partition: int
    partitions: int
    examples: int = field(compare=False)
    input_size: tuple[int, int, int] = field(compare=False)
    name: str = ""
    node_id: int = 0

    @property
    def label(self) -> str:
        """The client in metrics: its partition, else its name, else Flower's id of its node."""
        return str(self.partition) if self.partition >= 0 else self.name or str(self.node_id)

    @classmethod
    def from_reply(
        cls,
        reply: Message,
        class_names: Sequence[str] = (),
        input_size: tuple[int, int, int] | None = None,
    ) -> ClientProperties:
        """Read a client's reply to a properties request.

        Args:
            reply: The reply.
            class_names: The classes that a client's own data must have. Default: not checked.
            input_size: The channels, height and width that its images must have. Default: any.

        Raises:
            ConfigError: If the client reports that it cannot start, has other classes or images of
                another size, or the reply is not valid.
        """
        if reply.has_error():
            raise ConfigError(reply.error.reason)
        try:
            reported = reply.content.config_records["properties"]
            properties = cls(
                partition=int(str(reported.get("partition-id", -1))),
                partitions=int(str(reported.get("num-partitions", 0))),
                examples=int(str(reported["examples"])),
                input_size=_size_of(reported["input-size"]),
                name=str(reported.get("name", ""))[:100],
                node_id=reply.metadata.src_node_id,
            )
            partitions = properties.partitions
            if not -1 <= properties.partition < max(partitions, 1) <= MAX_PARTITIONS:
                raise ValueError(f"partition {properties.partition} of {partitions}")
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"its properties are not valid ({error!r}): install the same version of "
                "fixbn-flwr on server and clients."
            ) from error
        own = reported.get("class-names", [])
        if class_names and isinstance(own, list) and own:
            _check_classes(list(map(str, own)), list(class_names))
        if input_size is not None:
            _check_size(properties.input_size, input_size)
        return properties


def _check_classes(own: list[str], expected: list[str]) -> None:
    """Check that the own data of a client has the classes of the server's."""
    if own != expected:
        differing = ", ".join(sorted({*own} ^ {*expected})[:5]) or "the same ones in another order"
        raise ConfigError(
            f"its data has {len(own)} classes and the server's {len(expected)}; they differ in"
            f" {differing}: give every machine a classes.txt with the same names in its data-dir."
        )


def _check_size(own: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    if own != expected:
        sizes = ["x".join(map(str, size)) for size in (own, expected)]
        raise ConfigError(
            f"its images have the size {sizes[0]} (channels, height, width) and the others"
            f" {sizes[1]}: set image-size in the run config."
        )


def _size_of(reported: object) -> tuple[int, int, int]:
    if not isinstance(reported, list) or len(reported) != 3:
        raise ValueError(f"input size {reported!r}")
    channels, height, width = (int(str(number)) for number in reported)
    if min(channels, height, width) < 1:
        raise ValueError(f"input size {reported!r}")
    return channels, height, width


def properties_request(node_id: int) -> Message:
    """Return the message that asks a client for its properties."""
    return Message(RecordDict(), dst_node_id=node_id, message_type="query")
