"""`fixbn doctor` asks real SuperLinks, with and without TLS."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fixbn_flwr.app.local_superlink import SuperLink
from tests.support.federations import Federation
from tests.support.machines import switch_off
from tests.support.real_runs import PROGRAMS
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def doctor(folder: Path, *words: str) -> tuple[int, str]:
    """Run `fixbn doctor`; return its exit code, and its lines about the SuperLink."""
    result = subprocess.run(
        [PROGRAMS / "fixbn", "doctor", *words],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stderr == ""
    return result.returncode, result.stdout[result.stdout.index("Flower's state;") :]


def test_a_superlink_without_tls_answers(link: SuperLink, tmp_path: Path) -> None:
    address = f"127.0.0.1:{link._port}"
    code, said = doctor(tmp_path, "--superlink", address)
    assert code == 0
    assert f"ok       a SuperLink answers at {address}: 0 SuperNodes are connected" in said
    code, said = doctor(
        tmp_path, "--superlink", address, "--ca", "/etc/ssl/certs/ca-certificates.crt"
    )
    assert code == 1
    assert "-> it does not use TLS: leave out --ca" in said


def test_a_superlink_with_tls_counts_its_supernodes(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    try:
        address = f"{federation.hosts[0]}:{federation.port}"
        ca = str(federation.link.home / "certificates" / "ca.crt")
        code, said = doctor(tmp_path, "--superlink", address, "--ca", ca)
        assert (code, "0 SuperNodes are connected" in said) == (0, True)
        federation.add("node", "0/1").start()

        def is_connected() -> bool:
            return (
                "1 SuperNodes are connected"
                in doctor(tmp_path, "--superlink", address, "--ca", ca)[1]
            )

        wait_until(is_connected, "the SuperNode was counted")
        code, said = doctor(tmp_path, "--superlink", address)
        assert code == 1
        assert re.search(r"if the SuperLink uses TLS, add --ca ca\.crt", said), said
        other = federation.machines[-1]
        other.run("deploy/make-certificates others --host 127.0.0.9")
        code, said = doctor(
            tmp_path, "--superlink", address, "--ca", str(other.home / "others" / "ca.crt")
        )
        assert code == 1
        assert "copy the SuperLink's ca.crt" in said
    finally:
        switch_off(federation.machines)
