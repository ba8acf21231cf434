"""Scripts of deploy/: their files are private and never overwritten; invalid options fail early."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from fixbn_flwr.app.process_cleanup import processes_with
from tests.support.machines import ROOT, free_port
from tests.support.scripts import Run, refusal, run_script, running
from tests.support.waiting import TIMEOUT, wait_for_line, wait_until

SCRIPTS = sorted(
    path for path in (ROOT / "deploy").iterdir() if path.suffix == "" and path.is_file()
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a shell line with a script of deploy/, in an empty folder that is also its home."""
    return partial(run_script, tmp_path)


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):o}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_executable_and_prints_its_help(script: Path, run: Run) -> None:
    assert os.access(script, os.X_OK)
    result = run(f"{script.name} --help")
    assert result.returncode == 0, result.stderr
    docstring = script.read_text().split('"""')[1]
    output = " ".join(result.stdout.split())
    for paragraph in docstring.split("\n\n"):
        assert " ".join(paragraph.split()) in output


def handshake(folder: Path, host: str) -> None:
    """Connect by TLS to a server with the folder's certificate, as `host`, trusting its ca.crt."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "superlink.crt", folder / "superlink.key")
    client = ssl.create_default_context(cafile=folder / "ca.crt")
    near, far = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(far, server_side=True) as connection:
                connection.recv(1)
        except ssl.SSLError:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=host):
            pass
    finally:
        near.close()
        thread.join()


def test_a_certificate_is_valid_only_for_its_hosts_and_keys_are_private(
    run: Run, tmp_path: Path
) -> None:
    result = run("make-certificates certificates --host 10.0.0.1 --host link.example.org")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "certificates"
    assert {path.name: mode(path) for path in folder.iterdir()} == {
        "ca.key": "600", "ca.crt": "644", "superlink.key": "600", "superlink.crt": "644"
    }  # fmt: skip
    assert mode(folder) == "700"
    for host in ("10.0.0.1", "link.example.org", "localhost", "127.0.0.1", "::1"):
        handshake(folder, host)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"10\.0\.0\.2"):
        handshake(folder, "10.0.0.2")


def test_certificates_are_renewed_under_the_same_authority_and_never_overwritten(
    run: Run, tmp_path: Path
) -> None:
    make = "make-certificates certificates --host 10.0.0.1"
    run(make)
    folder = tmp_path / "certificates"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert refusal(run(make)) == (
        "certificates/superlink.key and certificates/superlink.crt would be overwritten: move both "
        "away to renew them."
    )
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    for path in folder.glob("superlink.*"):
        path.unlink()
    assert run(make).returncode == 0
    after = {path: path.read_bytes() for path in folder.iterdir()}
    renewed = {path.name for path in after if after[path] != before[path]}
    assert renewed == {"superlink.key", "superlink.crt"}
    handshake(folder, "10.0.0.1")


def test_no_key_is_written_to_a_folder_that_others_can_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    for line in ("make-certificates open --host a", "make-node-key open/key"):
        folder = "open" if "cert" in line else str(tmp_path / "open")
        assert refusal(run(line)) == f"other users can open {folder}: run chmod 700 {folder}"
    assert not list((tmp_path / "open").iterdir())


def test_a_host_with_a_port_is_refused(run: Run, tmp_path: Path) -> None:
    assert "remove scheme and port" in refusal(run("make-certificates c --host a:8000"))
    assert not (tmp_path / "c" / "superlink.key").exists()


def test_a_node_key_is_private_and_never_overwritten(run: Run, tmp_path: Path) -> None:
    assert run("make-node-key keys/hospital-a").returncode == 0
    key, public = tmp_path / "keys" / "hospital-a", tmp_path / "keys" / "hospital-a.pub"
    assert (mode(key.parent), mode(key), mode(public)) == ("700", "600", "644")
    loaded = load_ssh_private_key(key.read_bytes(), None)
    written = loaded.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    assert public.read_bytes() == written + b"\n"
    before = key.read_bytes()
    assert refusal(run("make-node-key keys/hospital-a")) == (
        "keys/hospital-a and keys/hospital-a.pub would be overwritten: choose another name, or "
        "move both away."
    )
    key.rename(tmp_path / "elsewhere")
    assert "keys/hospital-a.pub would be overwritten" in refusal(
        run("make-node-key keys/hospital-a")
    )
    assert (tmp_path / "elsewhere").read_bytes() == before


@pytest.fixture
def made(run: Run, tmp_path: Path) -> Run:
    """Like `run`, in a folder with certificates, a node's key and data."""
    run("make-certificates certificates --host 127.0.0.1 && make-node-key keys/a")
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    return run


NODE = "start-supernode --superlink 127.0.0.1:9 --ca certificates/ca.crt --key keys/a"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("start-superlink", "set either --certificates FOLDER or --insecure."),
        ("start-superlink --certificates certificates --insecure", "set either --certificates"),
        (
            "start-superlink --certificates keys",
            "/keys/ca.crt does not exist or cannot be read: set",
        ),
        (
            "chmod 640 certificates/superlink.key; start-superlink --certificates certificates",
            "superlink.key: run chmod 600 ",
        ),
        (
            "start-superlink --insecure --host 192.0.2.1",
            "cannot listen on 192.0.2.1:8000 (",
        ),
        ("mkdir -m 755 h; start-superlink --insecure --home h", "/h: run chmod 700 /"),
        ("start-supernode --superlink a:1 --data data", "set both --ca and --key, or --insecure"),
        ("start-supernode --superlink a:1 --ca x --data data", "set both --ca and --key, or"),
        (
            f"{NODE} --insecure --data data",
            "set both --ca and --key, or --insecure for neither.",
        ),
        ("start-supernode --superlink a --insecure --data data", "'a' is not HOST:PORT, such as"),
        (
            "start-supernode --superlink a:99999 --insecure --data data",
            "'a:99999' is not HOST:PORT",
        ),
        (
            "start-supernode --superlink a..b:80 --insecure --data data",
            "--superlink 'a..b:80' has no valid host (",
        ),
        (
            f"{NODE} --key keys/b --data data",
            "the key keys/b does not exist or cannot be read: create",
        ),
        (
            f"chmod 644 keys/a; {NODE} --data data",
            "other users can read the key keys/a: run chmod 600",
        ),
        (
            NODE,
            "set --data FOLDER, or --partition I/N for a part of a data set that all nodes have.",
        ),
        (f"{NODE} --data nowhere", "/nowhere is not a readable folder: set it to one."),
        (f"{NODE} --data empty", "/empty is empty: put this node's data there."),
        (
            f"{NODE} --partition 2/2",
            "--partition '2/2' is not I/N with I from 0 to N - 1: write e.g. 0/2.",
        ),
        (
            f"{NODE} --data data --device gpu",
            "--device 'gpu' is no device: use auto, cpu, cuda or e.g. cuda:1.",
        ),
        (f"{NODE} --data data --precision half", "'half' does not exist: use float32 or bfloat16."),
        (f'{NODE} --data data --name "it\'s"', "remove quotes, backslashes and line breaks."),
        (
            "register keys/b.pub --superlink a:1 --ca certificates/ca.crt",
            "keys/b.pub does not exist",
        ),
        (
            "register keys/a --superlink a:1 --ca certificates/ca.crt",
            "use the file that ends in .pub",
        ),
        (
            "register keys/a.pub --superlink a:1 --ca keys/ca.crt",
            "keys/ca.crt does not exist or cannot",
        ),
        (
            "revoke keys/b.pub --superlink a:1 --ca certificates/ca.crt",
            "keys/b.pub does not exist or cannot be read: copy it from the node.",
        ),
        (
            "revoke keys/a --superlink a:1 --ca certificates/ca.crt",
            "use the file that ends in .pub",
        ),
        (
            "revoke keys/a.pub --superlink 127.0.0.1:9 --ca certificates/ca.crt",
            "the SuperLink at 127.0.0.1:9 does not answer (",
        ),
        (
            "revoke keys/a.pub --superlink 10.0.0.1:port --ca certificates/ca.crt",
            "the SuperLink at 10.0.0.1:port does not answer (Invalid port: 'port'): start it",
        ),
        (
            "revoke keys/a.pub --superlink a..b:80 --ca certificates/ca.crt",
            "the SuperLink at a..b:80 does not answer (",
        ),
        (
            "revoke keys/a.pub --superlink 127.0.0.1:9 --ca keys/a.pub",
            "--ca keys/a.pub is not a certificate (",
        ),
        (
            "mkdir -p h/health.json; chmod 700 h; start-superlink --insecure --home h",
            "/h/health.json': check that the file or folder exists",
        ),
        (
            "rm -r certificates/superlink.*; : > certificates/ca.key; "
            "make-certificates certificates --host a",
            "certificates/ca.key or certificates/ca.crt is damaged (",
        ),
        ("check-health --home nowhere", "the process with home nowhere does not respond"),
    ],
)
def test_an_invalid_option_prints_one_line_before_anything_starts(
    made: Run, line: str, message: str
) -> None:
    assert message in refusal(made(line))


def test_a_port_in_use_is_refused(made: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = f"start-superlink --certificates certificates --host 127.0.0.1 --port {port}"
        assert f"cannot listen on 127.0.0.1:{port} (" in refusal(made(line))


@pytest.mark.parametrize(
    ("options", "host", "url"),
    [
        ("--insecure", "0.0.0.0", "http://127.0.0.1"),
        ("--insecure", "::1", "http://[::1]"),
        ("--insecure", "::", "http://[::1]"),
        ("--certificates certificates", "::", "https://[::1]"),
    ],
)
def test_check_health_finds_the_superlinks_address(
    made: Run, tmp_path: Path, options: str, host: str, url: str
) -> None:
    try:
        port = free_port(host)
    except OSError:
        pytest.skip(f"this machine has no address {host}")
    answers: list[subprocess.CompletedProcess[str]] = []

    def is_healthy() -> bool:
        answers.append(made("check-health --home home"))
        return answers[-1].returncode == 0

    log = tmp_path / "log"
    line = f"start-superlink {options} --host {host} --port {port} --home home"
    with running(line, log) as superlink:
        wait_until(is_healthy, "the SuperLink was healthy", process=superlink, log=log)
    assert answers[-1].stdout == f"{url}:{port}/health responds.\n"


def test_two_nodes_cannot_share_a_home(run: Run, tmp_path: Path) -> None:
    node = "start-supernode --insecure --superlink 127.0.0.1:9 --partition 0/2 --home home"
    with running(node, tmp_path / "log") as first:
        wait_for_line(tmp_path / "log", "Starting SuperNode", first)
        result = run(node)
    assert refusal(result).endswith(
        "/home is already running: stop it first, or give this one its own key (without keys: its "
        "own --name), which gives it its own home."
    )


@pytest.fixture
def default_hangup() -> Iterator[None]:
    """Let processes end on SIGHUP, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_no_second_node_starts_while_a_part_of_the_first_lives(
    run: Run, tmp_path: Path, number: signal.Signals
) -> None:
    node = "start-supernode --insecure --superlink 127.0.0.1:9 --partition 0/2 --home home"
    home = tmp_path / "home"
    log = tmp_path / "log"
    with running(node, log) as first:
        wait_until(lambda: processes_with(home), "flower-supernode ran", process=first, log=log)
        first.send_signal(number)
        first.wait(TIMEOUT)
    if number == signal.SIGHUP:  # the script ends what it has started
        wait_until(lambda: not processes_with(home), "all processes of the node had ended")
        return
    left = processes_with(home)
    try:
        assert left
        assert "/home is already running: stop it first" in refusal(run(node))
    finally:
        for process in left:
            os.kill(process, signal.SIGKILL)


@pytest.mark.usefixtures("default_hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_node_starts_leaves_no_process(
    run: Run, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "sitecustomize.py").write_text(  # sends it before the script knows the process
        "import os, subprocess\n"
        "class Popen(subprocess.Popen):\n"
        "    def __init__(self, args, **options):\n"
        "        super().__init__(args, **options)\n"
        "        if args[0].endswith('flower-supernode'):\n"
        f"            os.kill(os.getpid(), {number:d})\n"
        "subprocess.Popen = Popen\n"
    )
    node = "start-supernode --insecure --superlink 127.0.0.1:9 --partition 0/2 --home home"
    result = run(f"PYTHONPATH=$PWD {node}")
    left = processes_with(tmp_path / "home")
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert result.stderr == ""
    assert not left


def test_two_superlinks_cannot_share_a_home(run: Run, tmp_path: Path) -> None:
    start = "start-superlink --insecure --host 127.0.0.1 --home home --port"
    with running(f"{start} {free_port('127.0.0.1')}", tmp_path / "log") as first:
        wait_for_line(tmp_path / "log", "Starting a SuperLink", first)
        result = run(f"{start} {free_port('127.0.0.1')}")
    assert refusal(result).endswith(
        "/home is already running: stop it first, or give this one its own --home."
    )


def test_an_expired_certificate_is_refused(made: Run, tmp_path: Path) -> None:
    late = tmp_path / "sitecustomize.py"  # shifts the clock by a year and a month
    late.write_text(
        "import datetime\n"
        "class Later(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None):\n"
        "        return super().now(tz) + datetime.timedelta(days=400)\n"
        "datetime.datetime = Later\n"
    )
    line = "PYTHONPATH=$PWD start-superlink --certificates certificates"
    assert "superlink.crt expired on " in refusal(made(line))


@pytest.fixture
def tls_port(made: Run, tmp_path: Path) -> Iterator[int]:
    """Run a server with the folder's certificate; return its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    folder = tmp_path / "certificates"
    context.load_cert_chain(folder / "superlink.crt", folder / "superlink.key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection, context.wrap_socket(connection, server_side=True) as encrypted:
                    encrypted.recv(1)

        thread = threading.Thread(target=serve, daemon=True)  # it may never get a connection
        thread.start()
        yield server.getsockname()[1]


def test_an_insecure_node_is_refused_by_a_superlink_with_tls(made: Run, tls_port: int) -> None:
    line = f"start-supernode --insecure --superlink 127.0.0.1:{tls_port} --data data"
    assert refusal(made(line)) == (
        f"the SuperLink at 127.0.0.1:{tls_port} uses TLS: set --ca and --key instead of --insecure."
    )


def test_another_authoritys_certificate_is_refused(made: Run, tls_port: int) -> None:
    made("make-certificates others --host 127.0.0.1")
    line = f"start-supernode --superlink 127.0.0.1:{tls_port} --ca others/ca.crt --key keys/a"
    message = refusal(made(f"{line} --data data"))
    assert message.startswith("the SuperLink's certificate is not valid (")
    assert message.endswith(
        "copy ca.crt from its machine, or create a certificate for --host 127.0.0.1 there."
    )
