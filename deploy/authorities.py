"""Certificate authorities of a federation, and the certificates that they issue."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from common import DeployError, write_new
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650

Signer = tuple[ec.EllipticCurvePrivateKey, x509.Name]


def load_authority(key: Path, crt: Path, name: str) -> Signer:
    """Load an authority from its two files; create it first if there is none.

    Raises:
        DeployError: If only one of the two files exists, or one is damaged.
    """
    if key.exists() != crt.exists():
        raise DeployError(
            f"{key.parent} has only one of {key.name} and {crt.name}: add the other, or move it "
            "away."
        )
    if not key.exists():
        _write(key, crt, *_sign(name, AUTHORITY_DAYS, None, []))
    try:
        loaded = load_pem_private_key(key.read_bytes(), None)
        subject = x509.load_pem_x509_certificate(crt.read_bytes()).subject
    except (ValueError, TypeError) as error:
        raise DeployError(
            f"{key} or {crt} is damaged ({error}): restore it, or move both away to create a new "
            f"authority, whose {crt.name} replaces this one on every machine."
        ) from error
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    return loaded, subject


def issue_server(
    key: Path, crt: Path, authority: Signer, hosts: list[str], days: int
) -> x509.Certificate:
    """Write a server's key and its certificate for these names and addresses.

    Raises:
        DeployError: If a host is neither a name nor an address.
    """
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return _write(key, crt, *_sign(hosts[0][:64], days, authority, [names, usage]))


def issue_client(key: Path, crt: Path, authority: Signer, name: str, days: int) -> x509.Certificate:
    """Write a client's key and its certificate."""
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    return _write(key, crt, *_sign(name, days, authority, [usage]))


def _sign(
    common_name: str, days: int, authority: Signer | None, extensions: list[x509.ExtensionType]
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Create a key and its certificate; without an authority, a self-signed authority."""
    private, now = ec.generate_private_key(ec.SECP384R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    signer, issuer = authority or (private, subject)
    is_authority = authority is None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ between machines
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=not is_authority,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            True,
        )
    )
    for extension in extensions:
        builder = builder.add_extension(extension, False)
    return private, builder.sign(signer, hashes.SHA384())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not host.isascii() or not host or any(sign in host for sign in " :/"):
            raise DeployError(
                f"--host {host!r} is neither a name nor an address: remove scheme and port."
            ) from None
        return x509.DNSName(host)


def _write(
    key: Path, crt: Path, private: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> x509.Certificate:
    write_new(key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    write_new(crt, certificate.public_bytes(Encoding.PEM), 0o644)
    return certificate
