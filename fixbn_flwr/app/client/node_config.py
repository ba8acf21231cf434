"""What a node's own config says: which images it trains on, how it is called, on which device.

A SuperNode gets it from `--node-config`, a simulated node from Flower. Either the node has a part
of data that every node has (`partition-id`, `num-partitions`), or data of its own: all that is in
its `data-dir`. Who runs a node knows its machine better than who writes the run config: `data-dir`,
`device` and `precision` given here win.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from flwr.app import Context

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError

OWN_KEYS = ("data-dir", "device", "precision")
"""The keys of the run config that a node config may give instead."""


@dataclass(frozen=True)
class Node:
    """Which client a node is.

    Attributes:
        name: how logs call it, `name` in the node config; empty when it has none.
        partition: the part of the shared data that it trains on, from 0; None: on its own data.
        partitions: the number of parts; 0 with data of its own.
        number: seeds its random choices, the same in every round, and in every run for a node with
            a partition, a name or a registered key.
    """

    name: str
    partition: int | None
    partitions: int
    number: int

    @classmethod
    def of(cls, context: Context) -> Node:
        """Read a node's config.

        Raises:
            ConfigError: it names neither a partition nor data, or a partition that cannot be.
        """
        config = context.node_config
        name = str(config.get("name", ""))
        given = [key for key in ("partition-id", "num-partitions") if key in config]
        if len(given) == 1 or not (given or "data-dir" in config):
            says = f"{given[0]} alone" if given else "neither data-dir nor partition-id"
            raise ConfigError(
                f"this node's config has {says}: start the SuperNode with --node-config "
                "'data-dir=\"/its/own/data\"' for all data of its own, or 'partition-id=0 "
                "num-partitions=2', numbered from 0, for a part of data that every node has."
            )
        if not given:
            digest = hashlib.sha256(name.encode()).digest()
            number = int.from_bytes(digest[:8], "big") if name else context.node_id
            return cls(name, None, 0, number)
        own, partitions = (_whole(key, config[key]) for key in ("partition-id", "num-partitions"))
        if not 0 <= own < partitions:
            raise ConfigError(
                f"partition-id={own} is not one of 0 to {partitions - 1}: number the SuperNodes "
                "from 0 in --node-config, and give all the same num-partitions."
            )
        return cls(name, own, partitions, own)


def _whole(key: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise ConfigError(
            f"{key}={value!r} is not a whole number: number the SuperNodes from 0 in "
            "--node-config, and give all the same num-partitions."
        ) from error


def settings_of(context: Context) -> Settings:
    """Return the run config as this node runs it: with what its own config gives instead.

    Raises:
        ConfigError: a value cannot work here.
    """
    own = {key: context.node_config[key] for key in OWN_KEYS if key in context.node_config}
    return Settings.from_run_config({**context.run_config, **own})
