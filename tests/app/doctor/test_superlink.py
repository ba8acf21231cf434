"""What `fixbn doctor` says when what is at the address is no SuperLink."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fixbn_flwr.app.doctor.superlink import ask_superlink
from tests.support.machines import free_port


@pytest.fixture(params=[404, 401, 200])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    """A web server that answers every request with the same status and no protobuf."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(request.param)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield request.param, f"127.0.0.1:{web.server_port}"
        web.shutdown()


def test_another_web_server_is_no_superlink(server: tuple[int, str]) -> None:
    status, address = server
    finding = ask_superlink(address, None)
    assert {
        404: f"{address} answers, but not as a SuperLink (HTTP status 404)",
        401: f"a SuperLink answers at {address}, and asks for a login",
        200: f"{address} answers, but not as a SuperLink (Invalid protobuf response payload)",
    }[status] == finding.text
    assert finding.is_problem is (status != 401)


@pytest.mark.parametrize("port", ["", ":99999999", ":x"])
def test_an_address_without_a_port_gets_an_example(port: str) -> None:
    finding = ask_superlink(f"127.0.0.1{port}" if port else "no host at all", None)
    assert finding.is_problem
    assert "the address is HOST:PORT, such as 10.0.0.1:8000" in finding.remedy


def test_nothing_at_the_address_is_a_problem() -> None:
    address = f"127.0.0.1:{free_port('127.0.0.1')}"
    finding = ask_superlink(address, None)
    assert finding.text.startswith(f"no SuperLink answers at {address} (")
    assert finding.remedy.startswith("start it")


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("no certificate")
    finding = ask_superlink("127.0.0.1:1", tmp_path / "ca.crt")
    assert finding.text.startswith(f"{tmp_path / 'ca.crt'} is no certificate (")
