"""Check the SuperLink's certificate, key and authority before it starts with them."""

from __future__ import annotations

import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from common import DeployError
from cryptography import x509


class EncryptedKeyError(Exception):
    """A private key has a password."""


def check_certificate(certificate: Path, key: Path, ca: Path, host: str) -> None:
    """Check that the SuperLink can use its certificate, and that this machine accepts it.

    Args:
        certificate: The SuperLink's certificate.
        key: Its private key.
        ca: The authority that signed it.
        host: The name or address at which programs of this machine reach the SuperLink.

    Raises:
        DeployError: If a file is damaged, or the certificate has expired, is of another authority
            or is not for the host.
    """
    renew = f"move {certificate.name} and {key.name} away, and run make-certificates again"
    try:
        until = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except ValueError as error:
        raise DeployError(
            f"{certificate} is not a certificate ({error}): restore it, or {renew}."
        ) from error
    if until < datetime.now(UTC):
        raise DeployError(f"{certificate} expired on {until:%F}: {renew}.")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # as in Flower's own processes
    try:
        server.load_cert_chain(certificate, key, password=_refuse_password)
    except EncryptedKeyError:
        return  # Flower asks for the password
    except ssl.SSLError as error:
        raise DeployError(
            f"{key} is damaged, or not the key of {certificate.name} ({error}): restore it, or "
            f"{renew}."
        ) from error
    try:
        client.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise DeployError(
            f"{ca} is not a certificate ({error}): copy it from a node, which has the same."
        ) from error
    if reason := _refusal(host, server, client):
        raise DeployError(
            f"{certificate} is not valid for {host!r}, where programs of this machine reach the "
            f"SuperLink, so no run could start ({reason}): {renew} with all names and addresses, "
            f"each after --host, also --host {host}."
        )


def _refuse_password() -> str:
    raise EncryptedKeyError


def _refusal(host: str, server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """Return why a client that connects to this host refuses the certificate; empty if it does not.

    The two shake hands in memory, so that OpenSSL checks the authority and the name, as it does for
    a connection.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        near = client.wrap_bio(to_client, to_server, server_hostname=host)
        far = server.wrap_bio(to_server, to_client, server_side=True)
        for side in (near, far, near):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except ssl.SSLError:
        return ""  # not because of the certificate
    except ValueError as error:  # no certificate can be for such a host
        return str(error)
    return ""
