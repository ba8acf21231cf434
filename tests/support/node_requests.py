"""Requests that a test sends as a SuperNode with a certain key would."""

from __future__ import annotations

from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import Message

from tests.support.federations import Federation

Key = ec.EllipticCurvePrivateKey


def key_of(federation: Federation, name: str) -> Key:
    """Create and register a node's key; return it."""
    node = federation.add(name, "0/1")
    loaded = load_ssh_private_key(Path(node.machine.home / "keys" / name).read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    return loaded


def post(client: httpx.Client, path: str, request: Message, key: Key) -> httpx.Response:
    """Send a request that is signed with this key."""
    built = client.build_request(
        "POST", f"/v1/fleet/{path}", content=request.SerializeToString(deterministic=True)
    )
    context = ProtobufRequestContext(rpc_method=path, message=request, request=built)
    signing = NodeAuthHttpInterceptor(key, key.public_key())
    return signing.intercept(context, lambda signed: client.send(signed.request))
