"""Ask a SuperLink which SuperNodes are connected, over Flower's own protocol."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from fixbn_flwr.app.doctor.finding import Finding
from fixbn_flwr.flower_compat import ControlHttpClient, ListNodesRequest

TIMEOUT = 5.0  # seconds
_LOGIN = (401, 403)  # HTTP status


def ask_superlink(address: str, ca: Path | None) -> Finding:
    """Ask the SuperLink at an address; it has until ``TIMEOUT`` to answer.

    Args:
        address: Such as "10.0.0.1:8000".
        ca: The certificate of the authority that signed the SuperLink's. None: without TLS.
    """
    try:
        verify = ssl.create_default_context(cafile=ca) if ca else False
    except (OSError, ssl.SSLError) as error:
        return Finding(
            f"{ca} is no certificate ({error})", "name the ca.crt of deploy/make-certificates"
        )
    scheme = "https" if ca else "http"
    client = ControlHttpClient(f"{scheme}://{address}", verify=verify, timeout=TIMEOUT)
    try:
        with client:
            nodes = client.ListNodes(ListNodesRequest()).nodes_info
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status in _LOGIN:
            return Finding(f"a SuperLink answers at {address}, and asks for a login")
        return _other_server(address, f"HTTP status {status}")
    except ValueError as error:  # no protobuf
        return _other_server(address, str(error))
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return _no_answer(address, ca, error)
    online = sum(node.status == "online" for node in nodes)
    return Finding(f"a SuperLink answers at {address}: {online} SuperNodes are connected")


def _other_server(address: str, reason: str) -> Finding:
    return Finding(
        f"{address} answers, but not as a SuperLink ({reason})",
        "check the port, and that Flower there is 1.41 or newer",
    )


def _no_answer(address: str, ca: Path | None, error: Exception) -> Finding:
    text = f"no SuperLink answers at {address} ({error})"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Finding(
            text, f"its certificate is not one for this address that {ca} has signed: copy the "
            "SuperLink's ca.crt, or make a certificate with --host for this address"
        )  # fmt: skip
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) and not ca:
        return Finding(text, "something is there: if the SuperLink uses TLS, add --ca ca.crt")
    if isinstance(error, httpx.ConnectError) and "SSL" in str(error):
        return Finding(text, "it does not use TLS: leave out --ca")
    return Finding(
        text, "start it (flower-superlink, or deploy/start-superlink), and check host, port and "
        "firewall; the address is HOST:PORT, such as 10.0.0.1:8000"
    )  # fmt: skip
