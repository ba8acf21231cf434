"""The gateway without a SuperLink: its paths, its limits, its TLS, and invalid options."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.superlink.routers.fleet.router import router as fleet

from fixbn_flwr.array_records import record_of
from fixbn_flwr.transport.bounded_grid import REPLY_MARGIN
from tests.support.federations import ADDRESS
from tests.support.gateways import Gateway, needs_nginx
from tests.support.machines import Machine, free_port, switch_off
from tests.support.uploads import message_to
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("gateway"), ADDRESS)
    machine.run(f"deploy/make-certificates certificates --host {ADDRESS}")
    yield machine
    switch_off([machine])


@pytest.fixture(scope="module")
def gateway(machine: Machine) -> Gateway:
    """Start a gateway; its SuperLink is not running."""
    gateway = Gateway(machine, free_port(ADDRESS))
    gateway.start()
    return gateway


def refusal(machine: Machine, options: str, **environment: str) -> str:
    result = machine.run(f"deploy/start-gateway {options}", check=False, **environment)
    assert result.returncode == 1
    (line,) = result.stdout.splitlines()
    return line


def paths(configuration: str) -> set[str]:
    words = configuration.split()
    return {word for word in words if word.startswith("/v1/fleet/")}


@needs_nginx
def test_it_serves_every_path_of_the_fleet_router_but_those_of_nodes_without_keys(
    gateway: Gateway,
) -> None:
    served = paths((gateway.machine.home / ".fixbn" / "gateway" / "nginx.conf").read_text())
    exist = {route.path for route in fleet.routes}  # type: ignore[attr-defined]
    assert exist - served == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert served <= exist


def test_no_object_of_a_large_model_is_larger_than_the_default_limit() -> None:
    arrays: ArrayRecord = record_of({"w": np.arange(45 * 10**6 // 4, dtype=np.int32)})
    message = Message(RecordDict({"arrays": arrays}), reply_to=message_to(1))
    message.metadata.__dict__["_message_id"] = "any"
    objects = [thing.deflate() for thing in get_all_nested_objects(message).values()]
    assert sum(map(len, objects)) > 45 * 10**6
    assert max(map(len, objects)) < REPLY_MARGIN


@needs_nginx
@pytest.mark.parametrize("port", ["port", "admin_port"])
def test_it_speaks_tls_1_3_only(gateway: Gateway, port: str) -> None:
    certificate = "admin-alice" if port == "admin_port" else ""

    def handshake(context: ssl.SSLContext) -> tuple[str, str] | None:
        address = (ADDRESS, getattr(gateway, port))
        with (
            socket.create_connection(address, timeout=60) as connection,
            context.wrap_socket(connection, server_hostname=ADDRESS) as secure,
        ):
            secure.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"max-age=31536000" in secure.recv(1000)
            cipher = secure.cipher()
            return cipher and (cipher[1], cipher[0])

    context = gateway.context(certificate)
    assert handshake(context) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        handshake(context)


@needs_nginx
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_scanner_finds_no_weakness(gateway: Gateway) -> None:
    def scan(*options: str) -> str:
        connect = f"-connect {ADDRESS}:{gateway.port} -CAfile {folder}/ca.crt".split()
        command = ["openssl", "s_client", *connect, "-x509_strict", "-verify_return_error"]
        result = subprocess.run([*command, *options], input=b"", stdout=-1, stderr=-2, check=False)
        return result.stdout.decode(errors="replace")

    folder = gateway.machine.home / "certificates"
    found = scan("-verify_ip", ADDRESS)
    for line in (
        "New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384",
        "Server Temp Key: X25519",
        "Compression: NONE",
        "Verify return code: 0 (ok)",
    ):
        assert line in found
    for version in ("-tls1", "-tls1_1", "-tls1_2"):
        assert "Cipher is (NONE)" in scan(version, "-cipher", "ALL:@SECLEVEL=0"), version
    # The only suite of TLS 1.3 that is not authenticated encryption of full strength.
    assert "Cipher is (NONE)" in scan("-ciphersuites", "TLS_AES_128_CCM_8_SHA256")


@needs_nginx
def test_a_request_without_a_superlink_is_answered_so_that_flower_tries_again(
    gateway: Gateway,
) -> None:
    with gateway.client(gateway.port) as node:
        answer = node.post("/v1/fleet/pull-messages")
    assert answer.status_code == 502
    assert "nginx/" not in answer.text
    assert "nginx/" not in answer.headers["server"]
    refused = {"the SuperLink does not respond": 1}
    wait_until(lambda: gateway.refusals() == refused, "the refusal was logged")


@needs_nginx
def test_check_health_reports_that_the_superlink_does_not_respond(gateway: Gateway) -> None:
    result = gateway.machine.run("deploy/check-health --home ~/.fixbn/gateway", check=False)
    assert result.returncode == 1
    assert "HTTP Error 502" in result.stdout


@needs_nginx
@pytest.mark.parametrize("address", ["10.0.0.1:8001", "0.0.0.0:8001", "127.0.0.1"])
def test_a_superlink_that_others_can_reach_is_refused(machine: Machine, address: str) -> None:
    assert refusal(machine, f"--certificates certificates --superlink {address}") == (
        f"Error: --superlink {address!r} is not a loopback address such as 127.0.0.1:8001: start "
        "the SuperLink with --host 127.0.0.1, so that nobody gets past the gateway."
    )


@needs_nginx
def test_an_admin_port_needs_an_authority(machine: Machine, tmp_path: Path) -> None:
    machine.run(f"deploy/make-certificates {tmp_path}/certificates --host {ADDRESS}")
    options = f"--certificates {tmp_path}/certificates --host {ADDRESS} --port {free_port(ADDRESS)}"
    assert refusal(machine, f"{options} --admin-port {free_port(ADDRESS)}") == (
        f"Error: the authority of --admin-port {tmp_path}/certificates/admin-ca.crt does not exist "
        "or cannot be read: run make-admin-certificate, or leave --admin-port out."
    )


def test_an_administrators_certificate_is_for_clients_and_has_its_own_authority(
    machine: Machine, tmp_path: Path
) -> None:
    folder = tmp_path / "certificates"
    early = machine.run(f"deploy/make-admin-certificate {folder} bob", check=False)
    assert early.stdout.endswith("run make-certificates first.\n")
    machine.run(f"deploy/make-certificates {folder} --host {ADDRESS}")
    machine.run(f"deploy/make-admin-certificate {folder} bob --days 3")
    loaded = {
        name: x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
        for name in ("ca", "admin-ca", "admin-bob")
    }
    bob = loaded["admin-bob"]
    bob.verify_directly_issued_by(loaded["admin-ca"])
    with pytest.raises(ValueError, match="Issuer"):
        bob.verify_directly_issued_by(loaded["ca"])
    usage = bob.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert (bob.not_valid_after_utc - bob.not_valid_before_utc).total_seconds() == 73 * 3600
    assert (folder / "admin-bob.key").stat().st_mode & 0o777 == 0o600
    again = machine.run(f"deploy/make-admin-certificate {folder} bob", check=False)
    assert "would be overwritten" in again.stdout
    invalid = machine.run(f"deploy/make-admin-certificate {folder} 'B/ob'", check=False)
    assert "the name 'B/ob' is not valid" in invalid.stdout


@needs_nginx
def test_nginx_accepts_the_configuration_for_every_kind_of_address(machine: Machine) -> None:
    for host in ("0.0.0.0", "::1", ADDRESS):
        checker = machine.home / "checker"
        checker.mkdir(exist_ok=True)
        (checker / "nginx").write_text(
            '#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/bin exec nginx -t "$@"\n'
        )
        (checker / "nginx").chmod(0o755)
        path = f"{checker}:{machine.environment['PATH']}"
        port = free_port("127.0.0.1")
        try:
            checked = machine.run(
                f"deploy/start-gateway --certificates certificates --host {host} --port {port} "
                "--home checked --message-mib 45",
                PATH=path,
            )
        except AssertionError as error:
            if host == "::1" and "Cannot assign" in str(error):
                continue  # a machine without IPv6
            raise
        assert "test is successful" in checked.stdout
    configuration = (machine.home / "checked" / "nginx.conf").read_text()
    assert f"client_max_body_size {4 * 45 * 2**20 + 2**24};" in configuration


def test_without_nginx_it_says_how_to_get_it(machine: Machine) -> None:
    if not needs_nginx.args[0]:
        pytest.skip("nginx is installed")
    assert refusal(machine, "--certificates certificates") == (
        "Error: nginx is not installed: run apt-get install nginx-light."
    )
