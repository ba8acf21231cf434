"""A federation of real processes on this machine: a SuperLink and SuperNodes.

    with real_federation(nodes=2, secure=True) as link:
        failure = link.run(app, run_config, {}, print)

The processes communicate over loopback and have their own home and ports. With ``secure=True`` they
use TLS, node authentication and a database, and with ``gateway=True`` also `deploy/start-gateway`.
This is for measurements and tests; `deploy/` is for separate machines.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fixbn_flwr.app.flower_processes import free_port
from fixbn_flwr.app.local_superlink import SuperLink
from fixbn_flwr.app.process_cleanup import start_guard
from fixbn_flwr.errors import SuperLinkError
from simulation import REPOSITORY

_NAME = "simulation"  # of the connection in Flower's config.toml
_START = 180.0  # seconds for the SuperLink to respond, and for the next node to connect
_AT_A_TIME = 4  # nodes that start at the same time, since each imports for seconds


@contextmanager
def real_federation(
    *,
    nodes: int,
    secure: bool,
    gateway: bool = False,
    environment: Mapping[str, str] | None = None,
    of_nodes: Mapping[str, str] | None = None,
) -> Iterator[RealFederation]:
    """Start a SuperLink and its SuperNodes; stop them and all their processes afterwards.

    Args:
        nodes: The number of SuperNodes. Node ``i`` has partition ``i``.
        secure: Whether to use TLS, node authentication and a database.
        gateway: Whether the nodes connect through a gateway. It needs ``secure``.
        environment: Environment variables for all processes, in addition to this process's.
        of_nodes: Environment variables for the SuperNodes and the processes that they start.

    Raises:
        SuperLinkError: If they do not start. The message ends with their logs.
    """
    with tempfile.TemporaryDirectory(prefix="fixbn-", ignore_cleanup_errors=True) as home:
        link = RealFederation(Path(home), nodes, secure, gateway, environment or {}, of_nodes or {})
        try:
            link.start()
            yield link
        finally:
            link.stop()


class RealFederation(SuperLink):
    """A SuperLink with SuperNodes; see :func:`real_federation`."""

    def __init__(
        self,
        home: Path,
        nodes: int,
        secure: bool,
        gateway: bool,
        environment: Mapping[str, str],
        of_nodes: Mapping[str, str],
    ) -> None:
        super().__init__(home, free_port())
        self._nodes = nodes
        self._secure = secure
        self._gateway = gateway
        self._port_for_nodes = self._port
        self._gateway_process: subprocess.Popen[bytes] | None = None
        self._node_processes: dict[int, subprocess.Popen[bytes]] = {}
        # The sockets of the nodes' workers are removed with the home.
        self._environment |= {"TMPDIR": str(home), **environment}
        self._of_nodes = of_nodes

    def start(self) -> None:
        """Start all processes and wait until every node has connected."""
        where = f'address = "127.0.0.1:{self._port}"\n'
        where += (
            f'root-certificates = "{self._certificate}"\n' if self._secure else "insecure = true\n"
        )
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_NAME}"\n\n[superlink.{_NAME}]\n{where}'
        )
        self._guard = start_guard(self._home)
        command = ["flower-superlink", "--isolation=subprocess", "--host=127.0.0.1"]
        command += [f"--port={self._port}", "--disable-runtime-dependency-installation"]
        if self._secure:
            self._make_certificate()
            command += [f"--ssl-ca-certfile={self._certificate}", "--enable-supernode-auth"]
            command += [f"--ssl-certfile={self._certificate}", f"--ssl-keyfile={self._key}"]
            command += [f"--database={self._home / 'superlink.db'}"]
        else:
            command.append("--insecure")
        self._process = self._begin(command, self._log, {})
        self._wait("the SuperLink did not start", lambda: self._listens(self._port))
        if self._gateway:
            self._start_gateway()
        for number in range(self._nodes):
            self.start_node(number)
            self._wait("a SuperNode has not connected", lambda: self._starting() < _AT_A_TIME)
        self._wait("not all SuperNodes have connected", lambda: not self._starting())

    def stop(self) -> None:
        """Stop all processes."""
        if self._gateway_process is not None:
            self._gateway_process.terminate()  # its environment does not name the home
            self._gateway_process.wait()
        super().stop()
        for process in self._node_processes.values():
            process.wait()
        self._node_processes.clear()

    def node_log(self, number: int) -> str:
        """Return the log of a node, with the output of its clients and its worker."""
        return (self._home / f"node{number}.log").read_text()

    @property
    def superlink_pid(self) -> int:
        """The id of the SuperLink's process."""
        assert self._process is not None
        return self._process.pid

    def node_megabytes(self) -> float:
        """The mean memory of a node and what it started, in 10^6 bytes, shared pages divided."""
        total = 0
        for node in self._node_processes.values():
            process = psutil.Process(node.pid)
            for each in (process, *process.children(recursive=True)):
                total += each.memory_full_info().pss
        return total / len(self._node_processes) / 1e6

    def stop_node(self, number: int) -> None:
        """Stop a node; it unregisters from the SuperLink."""
        process = self._node_processes.pop(number)
        process.terminate()
        process.wait()
        with suppress(ProcessLookupError):  # what it started does not notice that it ended
            os.killpg(process.pid, signal.SIGKILL)

    def start_node(self, number: int) -> None:
        """Start a node, and register its key first if it has none yet."""
        node_config = f"partition-id={number} num-partitions={self._nodes}"
        command = ["flower-supernode", f"--superlink=127.0.0.1:{self._port_for_nodes}"]
        command += [f"--port={free_port()}", f"--node-config={node_config}"]
        if self._secure:
            key = self._home / f"node{number}"
            if not key.exists():
                keygen = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(key)]
                self._call(keygen)
                self._call(["flwr", "supernode", "register", f"{key}.pub", _NAME])
            command += [f"--root-certificates={self._certificate}"]
            command += [f"--auth-supernode-private-key={key}"]
        else:
            command.append("--insecure")
        log = self._home / f"node{number}.log"
        self._node_processes[number] = self._begin(command, log, self._of_nodes)

    def _begin(
        self, command: list[str], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with log.open("wb") as file:
            return subprocess.Popen(
                command,
                cwd=self._home,
                env={**self._environment, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _call(self, command: list[str]) -> None:
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SuperLinkError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")

    def _make_certificate(self) -> None:
        if shutil.which("openssl") is None:
            raise SuperLinkError(
                "openssl is not installed, and the certificate is made with it: install it"
            )
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
        command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        self._call([*command, "-keyout", str(self._key), "-out", str(self._certificate)])

    def _start_gateway(self) -> None:
        """Start the gateway with the SuperLink's certificate, which is its own authority."""
        folder = self._home / "certificates"
        folder.mkdir(mode=0o700)
        for name in ("ca.crt", "superlink.crt"):
            shutil.copy(self._certificate, folder / name)
        shutil.copy(self._key, folder / "superlink.key")
        self._port_for_nodes = free_port()
        command = [sys.executable, str(REPOSITORY / "deploy" / "start-gateway"), "--host=127.0.0.1"]
        command += [f"--certificates={folder}", f"--superlink=127.0.0.1:{self._port}"]
        command += [f"--port={self._port_for_nodes}", f"--home={self._home / 'gateway'}"]
        # All nodes have one address here.
        command += [f"--connections={8 * self._nodes}", f"--rate={50 * self._nodes}"]
        self._gateway_process = self._begin(command, self._home / "gateway.log", {})
        self._wait("the gateway did not start", lambda: self._listens(self._port_for_nodes))

    @property
    def _certificate(self) -> Path:
        return self._home / "server.pem"

    @property
    def _key(self) -> Path:
        return self._home / "server.key"

    def _listens(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def _starting(self) -> int:
        """Return the number of nodes that have started but not connected."""
        return sum("SuperNode ID" not in self.node_log(number) for number in self._node_processes)

    def _wait(self, failure: str, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + _START
        while not condition():
            if time.monotonic() > end:
                logs = "\n".join(path.read_text() for path in sorted(self._home.glob("*.log")))
                raise SuperLinkError(f"{failure}:\n{logs}")
            time.sleep(0.2)
