"""The private parts of Flower that this package uses, and what differs between its releases.

No other module imports private parts. Private is what is not in the ``__all__`` of ``flwr.app``,
``flwr.clientapp``, ``flwr.serverapp``, ``flwr.server``, ``flwr.client``, ``flwr.common`` or
``flwr.simulation``. When a release of Flower moves one of these names, only this file changes.

The library works from 1.17 on, its Message API from 1.21 on, which is the first release with
``flwr.serverapp.strategy``. Packed arrays, the engine and the app need 1.41.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeGuard

from flwr.common import Array, Context, Error, Message, Metadata
from flwr.common.constant import ErrorCode, SType
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_STATE
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
)
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.server.client_proxy import ClientProxy

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.log import logger

if TYPE_CHECKING:
    from flwr.app.message.message import make_message
    from flwr.cli.constant import (
        DEFAULT_FLOWER_CONFIG_TOML,
        FLOWER_CONFIG_FILE,
        LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE,
        LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE_IN_MEMORY,
    )
    from flwr.cli.flower_config import parse_superlink_connection
    from flwr.common.serde import recorddict_to_proto
    from flwr.common.serde_utils import metadata_from_proto
    from flwr.proto.control_pb2 import ListNodesRequest, UnregisterNodeRequest
    from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest
    from flwr.supercore.control import ControlHttpClient
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
    from flwr.supercore.utils import get_flwr_home
    from flwr.superlink.grid import HttpGrid
else:
    try:  # 1.34 and later
        from flwr.app.message.message import make_message
        from flwr.supercore.run import Run
    except ImportError:
        from flwr.common.message import make_message
        from flwr.common.typing import Run

TESTED = (1, 42)  # major and minor version

# As in flwr.clientapp.typing, which has both since 1.34.
ClientAppCallable = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, ClientAppCallable], Message]

# What only transport, engine and app use, by the module that has it in Flower 1.41.
_RECENT = {
    "ConfirmMessageReceivedRequest": "flwr.proto.message_pb2",
    "ControlHttpClient": "flwr.supercore.control",
    "DEFAULT_FLOWER_CONFIG_TOML": "flwr.cli.constant",
    "FLOWER_CONFIG_FILE": "flwr.cli.constant",
    "HttpGrid": "flwr.superlink.grid",
    "LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE": "flwr.cli.constant",
    "LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE_IN_MEMORY": "flwr.cli.constant",
    "ListNodesRequest": "flwr.proto.control_pb2",
    "ObjectPullError": "flwr.supercore.inflatable.inflatable_utils",
    "ObjectUnavailableError": "flwr.supercore.inflatable.inflatable_utils",
    "PullAppMessagesRequest": "flwr.proto.runtime_pb2",
    "TaskIdentity": "flwr.supercore.task_identity",
    "UnregisterNodeRequest": "flwr.proto.control_pb2",
    "get_flwr_home": "flwr.supercore.utils",
    "inflate_object_from_contents": "flwr.supercore.inflatable.inflatable_utils",
    "iterate_object_tree": "flwr.supercore.inflatable.inflatable_object",
    "make_pull_object_fn_protobuf": "flwr.supercore.inflatable.inflatable_protobuf_utils",
    "metadata_from_proto": "flwr.common.serde_utils",
    "parse_superlink_connection": "flwr.cli.flower_config",
    "pull_objects": "flwr.supercore.inflatable.inflatable_utils",
    "recorddict_to_proto": "flwr.common.serde",
}

__all__ = [
    "DEFAULT_FLOWER_CONFIG_TOML",
    "FLOWER_CONFIG_FILE",
    "LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE",
    "LOCAL_SUPERLINK_ADDRESS_MAGIC_VALUE_IN_MEMORY",
    "RECORD_KEY_STATE",
    "TESTED",
    "ClientAppCallable",
    "ClientProxy",
    "ConfirmMessageReceivedRequest",
    "ControlHttpClient",
    "ErrorCode",
    "HttpGrid",
    "ListNodesRequest",
    "Mod",
    "ObjectPullError",
    "ObjectUnavailableError",
    "PullAppMessagesRequest",
    "Run",
    "SType",
    "TaskIdentity",
    "UnregisterNodeRequest",
    "context_from_bytes",
    "context_to_bytes",
    "error_reply",
    "get_flwr_home",
    "inflate_object_from_contents",
    "is_http_grid",
    "iterate_object_tree",
    "make_array",
    "make_message",
    "make_pull_object_fn_protobuf",
    "message_api_strategies",
    "message_from_bytes",
    "message_to_bytes",
    "metadata_from_proto",
    "parse_superlink_connection",
    "pull_objects",
    "recorddict_to_proto",
    "set_task_identity",
    "warn_if_untested",
]


def __getattr__(name: str) -> Any:
    if name not in _RECENT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_RECENT[name]), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"this needs Flower 1.41 or newer, and {version('flwr')} is installed: packed arrays, "
            "the engine and the app use parts that older releases do not have. Update it with "
            "`pip install -U flwr`."
        ) from error


@cache
def warn_if_untested() -> None:
    """Log one warning if the installed Flower is newer than the newest tested one."""
    installed = version("flwr")
    major, minor = (int(part) for part in installed.split(".")[:2])
    if (major, minor) > TESTED:
        logger.warning(
            "flwr %s is newer than %s.%s, the newest that this release of fixbn-flwr was tested "
            "with", installed, *TESTED,
        )  # fmt: skip


def message_api_strategies(*names: str) -> tuple[type, ...]:
    """Return those of these classes of ``flwr.serverapp.strategy`` that the release has.

    1.21 has few; ``Bulyan`` came in 1.24.
    """
    strategies = import_module("flwr.serverapp.strategy")
    return tuple(vars(strategies)[name] for name in names if name in vars(strategies))


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
    """Set the identity of this process, without which no message can be created since 1.38."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        return
    TaskIdentity.task_id = TaskIdentity.node_id = 1
    TaskIdentity.run_id = run_id


def error_reply(metadata: Metadata, reason: str) -> Message:
    """Return an error reply that replaces the reply with this metadata."""
    error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
    return make_message(metadata=metadata, error=error)


def message_to_bytes(message: Message) -> bytes:
    """Serialise a message, with its metadata, as Flower sends it."""
    content: bytes = message_to_proto(message).SerializeToString()
    return content


def message_from_bytes(content: bytes) -> Message:
    """Deserialise what ``message_to_bytes`` returned."""
    proto = ProtoMessage()
    proto.ParseFromString(content)
    return message_from_proto(proto)


def context_to_bytes(context: Context) -> bytes:
    """Serialise a context, with its state."""
    content: bytes = context_to_proto(context).SerializeToString()
    return content


def context_from_bytes(content: bytes) -> Context:
    """Deserialise what ``context_to_bytes`` returned."""
    proto = ProtoContext()
    proto.ParseFromString(content)
    return context_from_proto(proto)
