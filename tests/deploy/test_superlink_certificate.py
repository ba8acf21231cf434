"""The SuperLink starts with a certificate that its own machine accepts, and with no other."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.support.machines import ROOT
from tests.support.scripts import Run, refusal, run_script

OLD = ["10.0.0.1", "localhost", "127.0.0.1"]  # what make-certificates once issued: without ::1


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests import the modules that lie beside the scripts."""
    monkeypatch.syspath_prepend(str(ROOT / "deploy"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return partial(run_script, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "certificates"
    folder.mkdir(mode=0o700)
    return folder


@contextmanager
def port_in_use(host: str) -> Iterator[int]:
    """Return a port at which a SuperLink that is not refused before cannot start."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no address {host}")
    with server:
        yield server.getsockname()[1]


def issue(folder: Path, hosts: list[str], authority: str = "ca") -> None:
    """Write a certificate, and its authority if there is none."""
    authorities = import_module("authorities")
    signer = authorities.load_authority(
        folder / f"{authority}.key", folder / f"{authority}.crt", authority
    )
    authorities.issue_server(
        folder / "superlink.key", folder / "superlink.crt", signer, hosts, days=1
    )


def check(folder: Path, host: str) -> None:
    module: Any = import_module("superlink_certificate")
    files = (folder / name for name in ("superlink.crt", "superlink.key", "ca.crt"))
    module.check_certificate(*files, host)


RESTORE = (
    "): restore it, or move superlink.crt and superlink.key away, and run make-certificates again."
)


@pytest.mark.parametrize(
    ("damage", "reason", "remedy"),
    [
        ("echo broken > superlink.crt", "superlink.crt is not a certificate (", RESTORE),
        ("head -c 300 ca.crt > superlink.crt", "superlink.crt is not a certificate (", RESTORE),
        ("echo broken > superlink.key", "superlink.key is damaged, or not the key of", RESTORE),
        ("cat ca.key > superlink.key", "superlink.key is damaged, or not the key of", RESTORE),
        ("echo broken > ca.crt", "ca.crt is not a certificate (", "): copy it from a node"),
    ],
)
def test_a_damaged_file_is_refused(
    run: Run, folder: Path, damage: str, reason: str, remedy: str
) -> None:
    issue(folder, OLD)
    with port_in_use("0.0.0.0") as port:
        start = f"start-superlink --certificates certificates --port {port}"
        message = refusal(run(f"(cd certificates && {damage}); {start}"))
    assert message.startswith(f"{folder}/{reason}")
    assert remedy in message


@pytest.mark.parametrize(("host", "own"), [("::", "::1"), ("127.0.0.2", "127.0.0.2")])
def test_a_superlink_that_its_own_machine_could_not_reach_does_not_start(
    run: Run, folder: Path, host: str, own: str
) -> None:
    issue(folder, OLD)
    with port_in_use(host) as port:
        start = f"start-superlink --certificates certificates --host {host} --port {port}"
        message = refusal(run(start))
    assert message == (
        f"{folder}/superlink.crt is not valid for '{own}', where programs of this machine reach "
        f"the SuperLink, so no run could start (IP address mismatch, certificate is not valid for "
        f"'{own}'.): move superlink.crt and superlink.key away, and run make-certificates again "
        f"with all names and addresses, each after --host, also --host {own}."
    )


@pytest.mark.parametrize(
    ("hosts", "host"),
    [
        (OLD, "127.0.0.1"),
        (OLD, "localhost"),
        (OLD, "LocalHost"),
        (OLD, "10.0.0.1"),
        (["::1"], "::1"),
        (["::1"], "0:0:0:0:0:0:0:1"),
        (["*.example.org"], "link.example.org"),
    ],
)
def test_a_host_of_the_certificate_is_accepted_however_it_is_written(
    folder: Path, hosts: list[str], host: str
) -> None:
    issue(folder, hosts)
    check(folder, host)


@pytest.mark.parametrize(
    ("hosts", "host"),
    [
        (OLD, "::1"),
        (OLD, "10.0.0.2"),
        (OLD, "link.example.org"),
        (["*.example.org"], "example.org"),
        (OLD, ""),
    ],
)
def test_another_host_is_refused(folder: Path, hosts: list[str], host: str) -> None:
    issue(folder, hosts)
    with pytest.raises(import_module("common").DeployError, match=f"is not valid for '{host}', "):
        check(folder, host)


def test_a_certificate_of_another_authority_is_refused(folder: Path) -> None:
    issue(folder, OLD)
    for name in ("superlink.crt", "superlink.key"):
        (folder / name).unlink()
    issue(folder, OLD, authority="another")
    with pytest.raises(import_module("common").DeployError, match=r"could start \(unable to"):
        check(folder, "127.0.0.1")


def test_a_key_with_a_password_is_left_to_flower_which_asks_for_it(folder: Path) -> None:
    issue(folder, OLD)
    key = folder / "superlink.key"
    private = load_pem_private_key(key.read_bytes(), None)
    secret = BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    check(folder, "127.0.0.1")
