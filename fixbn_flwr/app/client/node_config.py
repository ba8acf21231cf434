"""The node config: which images a node trains on, its name and its device.

A SuperNode gets it from `--node-config`, a simulated node from Flower. A node trains either on one
partition of data that every node has (`partition-id`, `num-partitions`), or on its own data: all
images in its `data-dir`. A node's `data-dir`, `device` and `precision` override the run config's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from flwr.app import Context

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError

OWN_KEYS = ("data-dir", "device", "precision")
"""The keys of the run config that a node config may override."""


@dataclass(frozen=True)
class Node:
    """A node's identity.

    Attributes:
        name: Its name in logs, `name` in the node config; empty if it has none.
        partition: The partition it trains on, from 0; None if it trains on its own data.
        partitions: The number of partitions; 0 if it trains on its own data.
        number: The seed of its random choices. It is the same in every round, and in every run if
            the node has a partition, a name or a registered key.
    """

    name: str
    partition: int | None
    partitions: int
    number: int

    @classmethod
    def of(cls, context: Context) -> Node:
        """Read the node config.

        Raises:
            ConfigError: If it has neither a valid partition nor a data directory.
        """
        config = context.node_config
        name = str(config.get("name", ""))
        given = [key for key in ("partition-id", "num-partitions") if key in config]
        if len(given) == 1 or not (given or "data-dir" in config):
            found = f"only {given[0]}" if given else "neither data-dir nor partition-id"
            raise ConfigError(
                f"the node config has {found}: start the SuperNode with --node-config "
                "'data-dir=\"/its/own/data\"' to train on its own data, or 'partition-id=0 "
                "num-partitions=2', numbered from 0, to train on a partition of data that every "
                "node has."
            )
        if not given:
            digest = hashlib.sha256(name.encode()).digest()
            number = int.from_bytes(digest[:8], "big") if name else context.node_id
            return cls(name, None, 0, number)
        own, partitions = (_whole(key, config[key]) for key in ("partition-id", "num-partitions"))
        if not 0 <= own < partitions:
            raise ConfigError(
                f"partition-id={own} is not between 0 and {partitions - 1}: number the SuperNodes "
                "from 0 in --node-config, with the same num-partitions for all."
            )
        return cls(name, own, partitions, own)


def _whole(key: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise ConfigError(
            f"{key}={value!r} is not a whole number: number the SuperNodes from 0 in "
            "--node-config, with the same num-partitions for all."
        ) from error


def settings_of(context: Context) -> Settings:
    """Return the run config with the node config's overrides.

    Raises:
        ConfigError: If it cannot be used on this node.
    """
    own = {key: context.node_config[key] for key in OWN_KEYS if key in context.node_config}
    return Settings.from_run_config({**context.run_config, **own})
