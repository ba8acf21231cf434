"""Check the options of start-supernode and make the node config from them."""

from __future__ import annotations

import os
import re
import socket
import ssl
from pathlib import Path
from typing import Any

from common import DeployError


def check_encryption(superlink: str, ca: Path | None) -> None:
    """Check that the SuperLink, if it is running, uses TLS exactly if we do.

    Raises:
        DeployError: If it does not, if its certificate is not valid for us, or if its address
            cannot be one.
    """
    host, _, port = superlink.rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        raise DeployError(
            f"--ca {ca} is not a certificate ({error}): copy ca.crt again."
        ) from error
    if ca is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, int(port)), timeout=5) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            encrypted = True
    except ssl.SSLCertVerificationError as error:
        raise DeployError(
            f"the SuperLink's certificate is not valid ({error.verify_message}): copy ca.crt "
            f"from its machine, or create a certificate for --host {host} there."
        ) from error
    except ssl.SSLError:
        encrypted = False
    except ValueError as error:  # such as an empty label in the host
        raise DeployError(
            f"--superlink {superlink!r} has no valid host ({error}): write HOST:PORT, such as "
            "10.0.0.1:8000."
        ) from error
    except OSError:
        return  # it is not running yet; flower-supernode waits for it
    if encrypted and ca is None:
        raise DeployError(
            f"the SuperLink at {superlink} uses TLS: set --ca and --key instead of --insecure."
        )
    if not encrypted and ca is not None:
        raise DeployError(
            f"the server at {superlink} does not use TLS: check that it is the SuperLink, and "
            "start it with --certificates."
        )


def make_node_config(
    name: str,
    data: Path | None,
    partition: str | None,
    device: str | None,
    precision: str | None,
) -> dict[str, Any]:
    """Check a node's options and return its node config.

    Raises:
        DeployError: If an option is invalid.
    """
    if data is None and partition is None:
        raise DeployError(
            "set --data FOLDER, or --partition I/N for a part of a data set that all nodes have."
        )
    node_config: dict[str, Any] = {"name": name} if name else {}
    if data is not None:
        folder = data.expanduser().absolute()
        if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
            raise DeployError(f"--data {folder} is not a readable folder: set it to one.")
        if not any(folder.iterdir()):
            raise DeployError(f"--data {folder} is empty: put this node's data there.")
        node_config["data-dir"] = str(folder)
    if partition is not None:
        part, slash, parts = partition.partition("/")
        if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
            raise DeployError(
                f"--partition {partition!r} is not I/N with I from 0 to N - 1: write e.g. 0/2."
            )
        node_config |= {"partition-id": int(part), "num-partitions": int(parts)}
    if device is not None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise DeployError(
                f"--device {device!r} is no device: use auto, cpu, cuda or e.g. cuda:1."
            )
        node_config["device"] = device
    if precision is not None:
        if precision not in ("float32", "bfloat16"):
            raise DeployError(f"--precision {precision!r} does not exist: use float32 or bfloat16.")
        node_config["precision"] = precision
    return node_config
