"""An in-memory SuperLink that serves clients' replies in Flower's protocol buffers."""

from __future__ import annotations

import hashlib

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid import HttpGrid

from fixbn_flwr.app import client_app
from fixbn_flwr.array_records import record_of
from fixbn_flwr.testing import SerializingGrid
from fixbn_flwr.transport.bounded_grid import BoundedGrid


class SuperLink:
    """Stores clients' replies and their objects, and answers the requests that pull them."""

    def __init__(self) -> None:
        self.envelopes: list[ProtoMessage] = []
        self.trees: list[ObjectTree] = []
        self.objects: dict[str, bytes] = {}
        self.polls_until_uploaded: dict[str, int] = {}
        self.confirmed: list[str] = []
        self.announced: set[str] = set()
        self.pulled = 0
        self.broken: Exception | None = None

    def upload(self, reply: Message) -> list[str]:
        """Store a reply as Flower's client sends it; return the names of its objects."""
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self.envelopes.append(message_to_proto(remove_content_from_message(reply)))
        self.trees.append(get_object_tree(reply))
        objects = {name: o.deflate() for name, o in get_all_nested_objects(reply).items()}
        self.objects |= objects
        return list(objects)

    def upload_bytes(self, reply: Message, content: bytes) -> None:
        """Store bytes that a client sends in place of its reply."""
        name = hashlib.sha256(content).hexdigest()
        reply.metadata.__dict__["_message_id"] = name
        self.envelopes.append(message_to_proto(remove_content_from_message(reply)))
        self.trees.append(ObjectTree(object_id=name))
        self.objects[name] = content

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        repeated = {*request.message_ids} & self.announced
        assert not repeated, f"a SuperLink announces each reply once; pulled again: {repeated}"
        assert request.message_ids
        self.announced |= {envelope.metadata.reply_to_message_id for envelope in self.envelopes}
        response = PullAppMessagesResponse(
            messages_list=self.envelopes, message_object_trees=self.trees
        )
        self.envelopes, self.trees = [], []
        return response

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        if self.broken is not None:
            raise self.broken
        content = self.objects.get(request.object_id)
        if content is None:
            return PullObjectResponse(object_found=False)
        self.polls_until_uploaded[request.object_id] = (
            self.polls_until_uploaded.get(request.object_id, 0) - 1
        )
        if self.polls_until_uploaded[request.object_id] >= 0:
            return PullObjectResponse(object_found=True, object_available=False)
        self.pulled += len(content)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: ConfirmMessageReceivedRequest) -> None:
        self.confirmed.append(request.message_object_id)


def grid_of(superlink: SuperLink) -> BoundedGrid:
    """Return a grid that pulls replies from this SuperLink."""
    http = HttpGrid(token="any")
    http._client = superlink  # type: ignore[assignment]
    return BoundedGrid(http)


def message_to(client: int) -> Message:
    SerializingGrid(client_app.app, 1)  # sets this process's identity in Flower
    message = Message(RecordDict(), dst_node_id=client, message_type="train")
    message.metadata.__dict__["_message_id"] = f"message-{client}"
    return message


def reply_of(client: int, loss: float = 0.5) -> Message:
    content = RecordDict({"arrays": record_of({"w": np.arange(3.0)})})
    content["metrics"] = MetricRecord({"loss": loss})
    return Message(content, reply_to=message_to(client))
