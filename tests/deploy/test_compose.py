"""Runs the commands of the services in deploy/compose.yaml without Docker.

Each service runs on its own test machine, and its volumes are folders. `superlink` is a loopback
address. What Docker itself does (building, user, capabilities) is only checked by the rules in
test_image.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.gateways import needs_nginx
from tests.support.machines import ROOT, Machine, Service, free_port, switch_off

pytestmark = [pytest.mark.slow, needs_nginx]

ADDRESS = "127.0.0.2"


class Container:
    """A service, run as its image runs it."""

    def __init__(
        self, service: dict[str, Any], machine: Machine, volumes: Path, ports: dict[str, str]
    ) -> None:
        self.machine = machine
        root = machine.home / "root"
        for volume in service["volumes"]:
            name, mount, *_ = volume.split(":")
            source = ROOT if name == ".." else volumes / name
            if name != "..":
                source.mkdir(mode=0o700, exist_ok=True)
            place = root / mount.removeprefix("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(source)
        words = [
            word.replace("$$", "$")
            .replace("/certificates", f"{root}/certificates")
            .replace("/keys/", f"{root}/keys/")
            .replace("superlink:8000", f"{ADDRESS}:8000")
            .replace("--host superlink", f"--host {ADDRESS}")
            .replace("8000", ports["8000"])
            .replace("8001", ports["8001"])
            for word in service["command"]
        ]
        self.command = shlex.join(words)
        self.environment = {
            "PATH": f"{machine.home}/deploy:{machine.environment['PATH']}",
            "FIXBN_HOME": f"{root}/var/lib/fixbn",
        }

    def run(self) -> str:
        return self.machine.run(self.command, **self.environment).stdout

    def start(self) -> Service:
        return self.machine.start(f"env {self.command}", "log", **self.environment)

    def is_healthy(self) -> bool:
        """Run the image's HEALTHCHECK."""
        return self.machine.run("check-health", check=False, **self.environment).returncode == 0


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[dict[str, Container]]:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    ports = {"8000": str(free_port(ADDRESS)), "8001": str(free_port("127.0.0.1"))}
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    machines = {name: Machine(tmp_path, name) for name in services}
    yield {
        name: Container(service, machines[name], volumes, ports)
        for name, service in services.items()
    }
    switch_off(machines.values())


def test_the_services_start_a_superlink_and_two_nodes_with_keys(
    containers: dict[str, Container], tmp_path: Path
) -> None:
    for time in ("first", "again"):  # `docker compose up` twice
        secrets = {path: path.read_bytes() for path in (tmp_path / "volumes").glob("*-keys/*")}
        containers["secrets"].run()
        superlink = containers["superlink"].start()
        superlink.wait_until(containers["superlink"].is_healthy, "the SuperLink was healthy")
        assert "Starting the SuperLink Runtime HTTP API" in superlink.output
        gateway = containers["gateway"].start()
        gateway.wait_until(containers["gateway"].is_healthy, "the gateway was healthy")
        registered = containers["register"].run()
        assert registered.count("already registered") == (0 if time == "first" else 2), registered
        nodes = [containers["hospital-a"].start(), containers["hospital-b"].start()]
        for node in nodes:
            node.wait_for("SuperNode ID: ", count=1 if time == "first" else 2)
        nodes[0].wait_until(containers["hospital-a"].is_healthy, "hospital-a was healthy")
        for service in [*nodes, gateway, superlink]:
            service.stop()
        assert secrets.items() <= {p: p.read_bytes() for p in secrets}.items()
    assert len(secrets) == 6  # ca.crt and a pair of keys for each node
