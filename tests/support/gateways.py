"""A federation behind a gateway, and an attacker who has its public port and a network address."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
from collections import Counter
from pathlib import Path

import httpx
import pytest
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from tests.support.federations import ADDRESS, Federation, Node
from tests.support.machines import Machine, Service, free_port
from tests.support.waiting import read_log

ATTACKER = "127.0.0.66"
PROTOBUF = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None,
    reason="nginx is not installed: apt-get install nginx-light",
)


class Gateway:
    """A gateway on a SuperLink's machine. Its ports are `port` and `admin_port`."""

    def __init__(self, machine: Machine, superlink: int) -> None:
        self.machine = machine
        self.port, self.admin_port = free_port(ADDRESS), free_port(ADDRESS)
        self._command = (
            f"deploy/start-gateway --certificates certificates --superlink {ADDRESS}:{superlink} "
            f"--host {ADDRESS} --port {self.port} --admin-port {self.admin_port}"
        )

    def start(self) -> Service:
        self.machine.run("deploy/make-admin-certificate certificates alice")
        service = self.machine.start(self._command, "gateway.log")

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((ADDRESS, self.port)) == 0

        service.wait_until(listens, "the gateway listened")
        return service

    def refusals(self, source: str = ATTACKER) -> Counter[str]:
        """Return how many lines of the log name each reason for refusing this address."""
        log = read_log(self.machine.home / ".fixbn" / "gateway" / "refused.log")
        return Counter(re.findall(rf"(?m)^\S+ {re.escape(source)} refused: (.*?) \(\d", log))

    def context(self, certificate: str = "") -> ssl.SSLContext:
        """Return a client's TLS settings, with a client certificate if one is named."""
        folder = self.machine.home / "certificates"
        context = ssl.create_default_context(cafile=folder / "ca.crt")
        if certificate:
            context.load_cert_chain(folder / f"{certificate}.crt", folder / f"{certificate}.key")
        return context

    def client(self, port: int, certificate: str = "", source: str = ATTACKER) -> httpx.Client:
        """Return a client of one of the SuperLink's machine's ports."""
        transport = httpx.HTTPTransport(
            verify=self.context(certificate), local_address=source, retries=0
        )
        return httpx.Client(
            base_url=f"https://{ADDRESS}:{port}", transport=transport, headers=PROTOBUF, timeout=60
        )

    def connect(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        """Return an attacker's TLS connection to the public port."""
        connection = socket.create_connection(
            (ADDRESS, self.port), timeout=60, source_address=(ATTACKER, 0)
        )
        return (context or self.context()).wrap_socket(connection, server_hostname=ADDRESS)


class GuardedFederation(Federation):
    """A federation whose nodes reach only the gateway."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gateway = Gateway(self.link, self.port)
        self.gateway.start()

    def add(self, name: str, part: str, *, register: bool = True) -> Node:
        """Create a node's machine; register its key at the SuperLink, past the gateway."""
        node = super().add(name, part, register=register)
        return Node(name, node.machine, f"{ADDRESS}:{self.gateway.port}")
