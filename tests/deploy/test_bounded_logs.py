"""Logs of the scripts in deploy/: they are complete, private, and never larger than promised."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.gateways import needs_nginx
from tests.support.machines import ROOT, Machine, free_port, switch_off
from tests.support.waiting import TIMEOUT, wait_until

MIB = 2**20
ADDRESS = "127.0.0.2"


def sizes(log: Path) -> dict[str, int]:
    found = {}
    for path in log.parent.glob(f"{log.name}*"):
        with suppress(FileNotFoundError):  # it has just been renamed
            found[path.name] = path.stat().st_size
    return found


def was_rotated(log: Path, files: int) -> bool:
    """Return whether there are so many files, also a new one that nginx has opened."""
    found = sizes(log)
    return len(found) == files and found.get(log.name, MIB) < MIB


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    start = f"import sys; sys.path.insert(0, {str(ROOT / 'deploy')!r})\n"
    return subprocess.run(
        [sys.executable, "-c", start + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )


def test_output_goes_to_a_private_log_that_is_rotated_and_loses_no_line(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from bounded_logs import keep_output\n"
        "keep_output(Path('out.log'), 1)\n"
        "os.execv('/bin/sh', ['sh', '-c', 'seq 1000001 1500000; echo end >&2'])\n"
    )
    result = run(code, tmp_path)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)
    log = tmp_path / "out.log"
    # run() has returned, so the helper has closed its own output: it has written everything.
    found = sizes(log)
    assert found.keys() == {"out.log", *(f"out.log.{number}" for number in range(1, 4))}
    assert max(found.values()) < MIB
    assert {oct(path.stat().st_mode)[-3:] for path in tmp_path.iterdir()} == {"600"}
    parts = [(tmp_path / f"out.log{number}").read_text() for number in (".3", ".2", ".1", "")]
    lines = "".join(parts).splitlines()
    assert lines == [str(number) for number in range(1000001, 1500001)] + ["end"]


def test_four_older_files_are_kept(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from bounded_logs import keep_output\n"
        "keep_output(Path('out.log'), 1)\n"
        "os.execv('/bin/sh', ['sh', '-c', 'seq 1000001 3000000'])\n"
    )
    run(code, tmp_path)
    found = sizes(tmp_path / "out.log")
    assert len(found) == 5
    assert sum(found.values()) < 5 * MIB
    assert (tmp_path / "out.log").read_text().endswith("\n3000000\n")


def test_a_log_that_cannot_be_written_is_named_before_anything_starts(tmp_path: Path) -> None:
    result = subprocess.run(
        [ROOT / "deploy" / "start-superlink", "--insecure", "--log", tmp_path / "no" / "a.log"],
        env={"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"Error: the log {tmp_path}/no/a.log cannot be written ")
    assert not (tmp_path / ".fixbn").exists()


def test_a_log_that_cannot_be_rotated_is_named_and_the_others_stay_bounded(tmp_path: Path) -> None:
    code = (
        "import bounded_logs, signal; from pathlib import Path\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "Path('a.log.3').touch(); Path('a.log.4').mkdir()\n"  # so that a.log.3 cannot be renamed
        "bounded_logs.PERIOD = 0.01\n"
        "bounded_logs.keep_bounded([Path('b.log'), Path('a.log')], 1)\n"
        "for name in ('a.log', 'b.log'):\n"
        "    Path('new').write_bytes(b'x' * 2**20); Path('new').rename(name)\n"
        "assert signal.sigtimedwait([signal.SIGUSR1], 30)\n"
        "print(sorted(path.name for path in Path().iterdir()), flush=True)\n"
        "Path('a.log.4').rmdir()\n"
        "assert signal.sigtimedwait([signal.SIGUSR1], 30)\n"
    )
    result = run(code, tmp_path)
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout.splitlines() == [
        f"a.log cannot be rotated, and grows: [Errno 21] Is a directory: '{tmp_path}/a.log.4'",
        "['a.log', 'a.log.3', 'a.log.4', 'b.log.1']",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"a.log.1", "a.log.4", "b.log.1"}


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, port)) == 0


def refuse(machine: Machine, port: int, word: str, count: int) -> None:
    """Send requests for unknown paths of 7,000 characters."""
    context = ssl.create_default_context(cafile=machine.home / "certificates" / "ca.crt")
    url = f"https://{ADDRESS}:{port}/{word}/{'x' * 7000}"
    with httpx.Client(verify=context) as client:
        for _ in range(count):
            assert client.get(url).status_code in (403, 503)


@needs_nginx
@pytest.mark.slow
def test_an_attacker_cannot_fill_the_disk_with_refusals(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ADDRESS)
    machine.run(f"deploy/make-certificates certificates --host {ADDRESS}")
    port = free_port(ADDRESS)
    service = machine.start(
        f"deploy/start-gateway --certificates certificates --superlink {ADDRESS}:1 --host "
        f"{ADDRESS} --port {port} --log gateway.log --log-mib 1",
        "start.log",
    )
    log = machine.home / ".fixbn" / "gateway" / "refused.log"
    try:
        service.wait_until(lambda: listens(port), "the gateway listened")
        # Each file gets 1 MiB and a line that is in none of the others.
        for number in range(7):
            refuse(machine, port, f"attack-{number}", 160)
            files = min(number + 2, 5)
            wait_until(partial(was_rotated, log, files), f"{log} was rotated")
        assert sizes(log).keys() == {log.name, *(f"{log.name}.{number}" for number in range(1, 5))}
        assert sum(sizes(log).values()) < 5 * 2 * MIB
        # nginx writes to the new file.
        refuse(machine, port, "after", 1)
        wait_until(lambda: "/after" in log.read_text(), "nginx wrote to the new log")
        assert service.stop() == 0
        machine.wait_until_off()
        # nginx's error log has a line of up to 2 KiB for each refusal too.
        found = sizes(machine.home / "gateway.log")
        assert len(found) > 1
        assert max(found.values()) < MIB
        assert service.output == ""
    finally:
        switch_off([machine])
