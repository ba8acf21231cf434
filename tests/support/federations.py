"""A federation for tests: a SuperLink and nodes, each on its own machine, with TLS and keys."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from safetensors.numpy import load_file

from tests.support.machines import Machine, Service, free_port
from tests.support.waiting import read_log, wait_until

ADDRESS = "127.0.0.2"
LOG = "supernode.log"


class Network(Protocol):
    """Creates the machines of a SuperLink and of its nodes."""

    def superlink(self, folder: Path) -> Machine:
        """Create the SuperLink's machine."""

    def node(self, folder: Path, number: int) -> Machine:
        """Create the machine of a node; numbers start at 0."""

    def superlink_address(self, number: int) -> str:
        """Return the address at which a node reaches the SuperLink."""


class Loopback:
    """A network on which every machine has its own loopback address."""

    def superlink(self, folder: Path) -> Machine:
        return Machine(folder, ADDRESS)

    def node(self, folder: Path, number: int) -> Machine:
        return Machine(folder, f"127.0.0.{3 + number}")

    def superlink_address(self, number: int) -> str:
        return ADDRESS


class Federation:
    """A running SuperLink with certificates. Nodes are added one by one, `nodes` at most."""

    def __init__(self, folder: Path, network: Network | None = None, nodes: int = 4) -> None:
        self.folder = folder
        self.network = network or Loopback()
        self.link = self.network.superlink(folder)
        self.machines = [self.link]
        self.numbers: dict[str, int] = {}  # Flower's number of each registered node
        self.hosts = sorted({self.network.superlink_address(number) for number in range(nodes)})
        self.port = 8000 if self.link.within else free_port(self.hosts[0])
        hosts = " ".join(f"--host {host}" for host in self.hosts)
        self.link.run(f"deploy/make-certificates certificates {hosts}")
        (self.link.home / ".flwr").mkdir()
        (self.link.home / ".flwr" / "config.toml").write_text(
            f'[superlink.federation]\naddress = "{self.hosts[0]}:{self.port}"\n'
            f'root-certificates = "{self.link.home}/certificates/ca.crt"\n'
        )
        self.data(self.link, "0/1")
        self.superlink = self.start_superlink()

    def start_superlink(self) -> Service:
        service = self.link.start(
            f"deploy/start-superlink --certificates certificates --port {self.port} "
            f"--host {self.hosts[0] if len(self.hosts) == 1 else '0.0.0.0'}",
            "superlink.log",
        )
        health = "deploy/check-health --home ~/.fixbn/superlink"
        service.wait_until(
            lambda: self.link.run(health, check=False).returncode == 0, "the SuperLink was healthy"
        )
        return service

    def data(self, machine: Machine, part: str) -> None:
        (machine.home / "data").mkdir()
        (machine.home / "data" / "part").write_text(part)
        shutil.copy(Path(__file__).with_name("ordered.py"), machine.home)
        machine.environment["PYTHONPATH"] = str(machine.home)

    def add(self, name: str, part: str, *, register: bool = True) -> Node:
        """Create a node's machine with its key and data; register the key, but start no node."""
        number = len(self.machines) - 1
        machine = self.network.node(self.folder, number)
        self.machines.append(machine)
        shutil.copy(self.link.home / "certificates" / "ca.crt", machine.home)
        self.data(machine, part)
        self.make_key(machine, name)
        if register:
            registered = self.on_superlink("register", name)
            self.numbers[name] = int(registered.split()[-1].rstrip("."))
        return Node(name, machine, f"{self.network.superlink_address(number)}:{self.port}")

    def make_key(self, machine: Machine, name: str) -> None:
        """Create a key on a node's machine, and copy its public part to the SuperLink's."""
        machine.run(f"deploy/make-node-key keys/{name}")
        shutil.copy(machine.home / "keys" / f"{name}.pub", self.link.home)

    def on_superlink(self, script: str, name: str) -> str:
        """Run `register` or `revoke` for a node's key; return the output."""
        return self.link.run(
            f"deploy/{script} {name}.pub --superlink {self.hosts[0]}:{self.port} "
            "--ca certificates/ca.crt"
        ).stdout

    def start_run(self, name: str, **run_config: Any) -> Service:
        """Start a run of the task in `ordered.py`, and stream its log."""
        config = {
            "task": "ordered:TASK",
            "data-dir": f"{self.link.home}/data",
            "output-dir": str(self.link.home),
            "run-name": name,
            "local-steps": 1,
            "weight-decay": 0.0,
            **{key.replace("_", "-"): value for key, value in run_config.items()},
        }
        text = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        return self.link.start(
            f"flwr run . federation --stream --run-config '{text}'", f"{name}.log"
        )

    def rounds(self, name: str) -> list[dict[str, Any]]:
        file = self.link.home / name / "metrics.jsonl"
        # Flower returns 0 whether a run fails or not: only its log tells why no round has ended.
        assert file.exists(), read_log(self.link.home / f"{name}.log")
        return [json.loads(line) for line in file.read_text().splitlines()]

    def statuses(self) -> dict[int, str]:
        """Return the status of each run by its number."""
        listed = json.loads(self.link.run("flwr ls federation --format json").stdout)
        return {int(run["run-id"]): run["status"] for run in listed["runs"]}


class Node:
    """A SuperNode that trains when a test orders it, see `ordered.py`."""

    def __init__(self, name: str, machine: Machine, superlink: str) -> None:
        self.name = name
        self.machine = machine
        self._command = f"deploy/start-supernode --superlink {superlink} --ca ca.crt"

    def start(self, data: str = "--data data", key: str = "") -> Service:
        """Start it, with another key than its first if one is named."""
        options = f"--key keys/{key} --name {self.name}" if key else f"--key keys/{self.name}"
        return self.machine.start(f"{self._command} {options} {data}", LOG)

    def wait_until_it_trains(self) -> None:
        waiting = self.machine.home / "waiting"
        wait_until(waiting.exists, f"{self.name} trained", log=self.machine.home / LOG)

    def order(self, word: str) -> None:
        """Wait until the node waits for an order, then order its next step."""
        self.wait_until_it_trains()
        file = self.machine.home / "new-order"
        file.write_text(word)
        os.replace(file, self.machine.home / "order")
        waiting = self.machine.home / "waiting"
        wait_until(
            lambda: not waiting.exists(),
            f"{self.name} took the order {word!r}",
            log=self.machine.home / LOG,
        )

    def power_failure(self) -> None:
        """Kill all processes of the node's machine."""
        self.machine.switch_off()
        (self.machine.home / "waiting").unlink(missing_ok=True)

    @property
    def momentum(self) -> dict[str, Any]:
        """The momentum buffers that the node saved last."""
        files = (self.machine.home / ".fixbn" / self.name / "momentum").glob(
            "*/node-*/round-*.safetensors"
        )
        return load_file(max(files, key=lambda file: file.stat().st_mtime))


def train(nodes: Iterable[Node]) -> None:
    """Let each node train in the round that it waits in."""
    for node in nodes:
        node.order("train")


def final_model(federation: Federation, run: str) -> bytes:
    """Return the file of a run's last model."""
    return (federation.link.home / run / "final.safetensors").read_bytes()
