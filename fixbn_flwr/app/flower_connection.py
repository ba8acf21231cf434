"""Connections of Flower's config.toml, read without Flower's side effects.

Flower's `read_superlink_connection` writes a config where there is none, and asks questions.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from fixbn_flwr.errors import SuperLinkError
from fixbn_flwr.flower_compat import (
    DEFAULT_FLOWER_CONFIG_TOML,
    FLOWER_CONFIG_FILE,
    LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE,
    LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE_IN_MEMORY,
    parse_superlink_connection,
)

_SIMULATIONS = (LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE, LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE_IN_MEMORY)


def refuse_simulation(home: Path, name: str) -> None:
    """Refuse a connection for which Flower's commands start a simulation on this machine.

    A config that Flower cannot read, or without the connection, passes: its commands start nothing
    then, and say what is wrong.

    Args:
        home: Flower's home, where its config.toml is.
        name: The connection's name; empty for the default one.

    Raises:
        SuperLinkError: If the connection is a local simulation.
    """
    path = home / FLOWER_CONFIG_FILE
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else DEFAULT_FLOWER_CONFIG_TOML
        connections = tomllib.loads(text)["superlink"]
        name = name or connections["default"]
        connection = parse_superlink_connection(connections[name], name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return
    address = connection.address
    if address is None:  # it has simulation options alone
        address = LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE
    if address in _SIMULATIONS:
        raise SuperLinkError(
            f"Flower's connection {name!r} has the address {address!r}, which starts a simulation "
            f"on this machine: write your SuperLink's address to {path}, as step 7 of "
            "deploy/README.md does, or name its connection with --superlink."
        )
