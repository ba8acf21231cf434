"""Machines that share only the kernel: each has its own network and its own view of the files.

The SuperLink's machine is in two networks, 10.0.1.0/24 and 10.0.2.0/24, and each network has one
node. No node can reach the other node or read a file of another machine. This requires root and
Linux network namespaces. The network interfaces exist only inside these namespaces.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.machines import Machine

# Hides the homes of all other machines from a process.
HIDE_OTHER_HOMES = """
mount --bind "{home}" /mnt
mount -t tmpfs none "{folder}"
mkdir -p "{home}"
mount --move /mnt "{home}"
cd "{home}"
exec "$@"
"""


class NamespaceError(Exception):
    """Network namespaces cannot be created on this machine."""


def ip(command: str) -> None:
    result = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
    if result.returncode:
        raise NamespaceError(f"ip {command}: {result.stderr.strip()}")


@contextmanager
def two_networks() -> Iterator[TwoNetworks]:
    """Create the namespaces, and remove them afterwards.

    Raises:
        NamespaceError: If this machine does not allow it.
    """
    names = [f"fixbn-{os.getpid()}-{number}" for number in range(3)]
    made: list[str] = []
    try:
        for name in names:
            ip(f"netns add {name}")
            made.append(name)
            ip(f"-n {name} link set lo up")
        for number in (1, 2):
            ip(
                f"-n {names[0]} link add node{number} type veth "
                f"peer name superlink netns {names[number]}"
            )
            for end, name, interface in (
                (1, names[0], f"node{number}"),
                (2, names[number], "superlink"),
            ):
                ip(f"-n {name} address add 10.0.{number}.{end}/24 dev {interface}")
                ip(f"-n {name} link set {interface} up")
        yield TwoNetworks(names)
    finally:
        for name in made:
            ip(f"netns delete {name}")


class TwoNetworks:
    """The machines of a SuperLink and two nodes; see the module."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def superlink(self, folder: Path) -> Machine:
        return self._machine(folder, 0, "10.0.1.1")

    def node(self, folder: Path, number: int) -> Machine:
        return self._machine(folder, 1 + number, f"10.0.{1 + number}.2")

    def superlink_address(self, number: int) -> str:
        return f"10.0.{1 + number}.1"

    def _machine(self, folder: Path, number: int, address: str) -> Machine:
        hide_other_homes = HIDE_OTHER_HOMES.format(home=folder / address, folder=folder)
        within = ["ip", "netns", "exec", self._names[number]]
        within += ["unshare", "--mount", "sh", "-ec", hide_other_homes, "sh"]
        return Machine(folder, address, within)
