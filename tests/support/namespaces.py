"""Machines that share nothing but the kernel: each has a network and a view of files of its own.

The SuperLink's machine is in two networks, 10.0.1.0/24 and 10.0.2.0/24, and in each there is one
node. Neither sees the other, nor any file of the other machines. It takes root, and Linux's network
namespaces; the interfaces exist inside them alone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.machines import Machine

# Of all machines' homes a process sees the one of its own.
OWN_FILES = """
mount --bind "{home}" /mnt
mount -t tmpfs none "{folder}"
mkdir -p "{home}"
mount --move /mnt "{home}"
cd "{home}"
exec "$@"
"""


class NamespaceError(Exception):
    """This machine gives no network namespaces."""


def ip(command: str) -> None:
    answer = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise NamespaceError(f"ip {command}: {answer.stderr.strip()}")


@contextmanager
def two_networks() -> Iterator[TwoNetworks]:
    """Make the namespaces, and remove them.

    Raises:
        NamespaceError: that is not allowed here.
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
    """A SuperLink's machine and two nodes'; see the module."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def superlink(self, folder: Path) -> Machine:
        return self._machine(folder, 0, "10.0.1.1")

    def node(self, folder: Path, number: int) -> Machine:
        return self._machine(folder, 1 + number, f"10.0.{1 + number}.2")

    def superlink_for(self, number: int) -> str:
        return f"10.0.{1 + number}.1"

    def _machine(self, folder: Path, number: int, address: str) -> Machine:
        own_files = OWN_FILES.format(home=folder / address, folder=folder)
        within = ["ip", "netns", "exec", self._names[number]]
        within += ["unshare", "--mount", "sh", "-ec", own_files, "sh"]
        return Machine(folder, address, within)
