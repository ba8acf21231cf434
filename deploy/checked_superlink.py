"""Run `flower-superlink` with two checks that Flower 1.42 lacks.

    python checked_superlink.py /path/to/flower-superlink OPTION...

Flower checks that a request's key belongs to the node that the request names. It does not check
that the reply in it is that node's, or that a message which it confirms, and so removes, was for
that node. Whoever has a registered key and knows a message's id could do both for another node.
"""

from __future__ import annotations

import runpy
import sys
from logging import WARNING
from typing import Any

from fastapi import HTTPException
from flwr.supercore import log
from flwr.supercore.utils import int64_to_uint64
from flwr.superlink.servicer.fleet import fleet_handlers

_push_messages = fleet_handlers.push_messages
_confirm_message_received = fleet_handlers.confirm_message_received


def push_messages(request: Any, state: Any) -> Any:
    """Refuse a reply in the name of another node."""
    for message in request.messages_list:
        if (sender := message.metadata.src_node_id) != request.node.node_id:
            _refuse(request, f"it sent a reply of node {sender}")
    return _push_messages(request=request, state=state)


def confirm_message_received(request: Any, state: Any, store: Any) -> Any:
    """Refuse to remove a message to another node."""
    message = state.get_valid_message_ins(request.message_object_id)
    if message and (receiver := int64_to_uint64(message["dst_node_id"])) != request.node.node_id:
        _refuse(request, f"it confirmed a message to node {receiver}")
    return _confirm_message_received(request=request, state=state, store=store)


def _refuse(request: Any, reason: str) -> None:
    log(WARNING, "node %s is refused: %s", request.node.node_id, reason)
    raise HTTPException(401, "Invalid node ID")  # Flower's own response to a wrong node


if __name__ == "__main__":
    # The module's route handlers look these functions up at each request.
    fleet_handlers.push_messages = push_messages
    fleet_handlers.confirm_message_received = confirm_message_received
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
