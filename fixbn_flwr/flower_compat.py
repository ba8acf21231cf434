"""The private parts of Flower that this package uses: no other module imports them.

Private is what is not in the ``__all__`` of ``flwr.app``, ``flwr.clientapp``, ``flwr.serverapp``,
``flwr.server``, ``flwr.client``, ``flwr.common`` or ``flwr.simulation``. When a release of Flower
moves one of these names, only this file has to change.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

from flwr.app import Array, Context, Error, Message, Metadata
from flwr.app.message.message import make_message
from flwr.app.typing import MetricRecordValues
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.constant import ErrorCode, SType
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_STATE
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
    recorddict_to_proto,
)
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.server.client_proxy import ClientProxy
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    from flwr.superlink.grid import HttpGrid as HttpGrid  # noqa: PLC0414 -- re-exported

__all__ = [
    "RECORD_KEY_STATE",
    "ClientAppCallable",
    "ClientProxy",
    "ConfirmMessageReceivedRequest",
    "ErrorCode",
    "MetricRecordValues",
    "Mod",
    "ObjectPullError",
    "ObjectUnavailableError",
    "PullAppMessagesRequest",
    "Run",
    "SType",
    "TaskIdentity",
    "context_from_bytes",
    "context_to_bytes",
    "error_reply",
    "inflate_object_from_contents",
    "is_http_grid",
    "iterate_object_tree",
    "make_array",
    "make_message",
    "make_pull_object_fn_protobuf",
    "message_from_bytes",
    "message_to_bytes",
    "metadata_from_proto",
    "pull_objects",
    "recorddict_to_proto",
    "set_task_identity",
]


def is_http_grid(grid: object) -> TypeGuard[HttpGrid]:
    """Return whether a grid talks to a SuperLink, as it does outside a simulation."""
    # Its import takes most of a second. Where nobody has imported it, there is no such grid.
    module = sys.modules.get("flwr.superlink.grid")
    return module is not None and isinstance(grid, module.HttpGrid)


def make_array(dtype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """Return an Array of numpy's format without the checks of its constructor, which are slow."""
    array = Array.__new__(Array)
    vars(array).update(dtype=dtype, shape=shape, stype=SType.NUMPY, data=data)
    return array


def set_task_identity(run_id: int) -> None:
    """Set the identity of this process, without which no message can be created."""
    TaskIdentity.task_id = TaskIdentity.node_id = 1
    TaskIdentity.run_id = run_id


def error_reply(metadata: Metadata, reason: str) -> Message:
    """Return an error reply that replaces the reply with this metadata."""
    error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
    return make_message(metadata=metadata, error=error)


def message_to_bytes(message: Message) -> bytes:
    """Serialize a message, with its metadata, as Flower sends it."""
    content: bytes = message_to_proto(message).SerializeToString()
    return content


def message_from_bytes(content: bytes) -> Message:
    """Deserialize what ``message_to_bytes`` returned."""
    proto = ProtoMessage()
    proto.ParseFromString(content)
    return message_from_proto(proto)


def context_to_bytes(context: Context) -> bytes:
    """Serialize a context, with its state."""
    content: bytes = context_to_proto(context).SerializeToString()
    return content


def context_from_bytes(content: bytes) -> Context:
    """Deserialize what ``context_to_bytes`` returned."""
    proto = ProtoContext()
    proto.ParseFromString(content)
    return context_from_proto(proto)
