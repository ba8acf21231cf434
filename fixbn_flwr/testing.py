"""A federation in one process, without Ray: the app and the messages are those of a real run.

    grid = InMemoryGrid(client_app, nodes=4)
    result = FixBN(FedAvg(), freeze_after=1).start(grid, initial_arrays(model), num_rounds=3)

Each node keeps one ``Context`` for its whole life. Messages pass as protobuf bytes and contexts as
pickles, as they do between SuperLink and SuperNode or between Ray's processes, so nothing is shared
by reference. A client that raises answers with the error reply that Flower's simulation would send,
and what it did to its context is discarded, as there. A run gives the same bits here as through
`flwr run` (tests/federation/test_completed_runs.py) and starts in no time, which is why the
experiments and the fast tests use it.
"""

from __future__ import annotations

import logging
import pickle
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import safetensors.torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fixbn_flwr.client.momentum_store import KEY
from fixbn_flwr.method.optimizer_buffers import Buffers

FIRST_NODE_ID = 1000

logging.getLogger("flwr").setLevel(logging.WARNING)  # its tables of every round


class InMemoryGrid(Grid):
    """Calls a ClientApp for each message, one node after the other.

    Args:
        client_app: what every node runs.
        nodes: the number of nodes; node ``FIRST_NODE_ID + i`` holds partition ``i``.
        shuffle_seed: replies come back in an order drawn from it; None keeps the order of asking.
        lost: tells of a message that its reply never arrives; None: all do.
        run_id: of all contexts; another run is another federation of the same nodes.
        run_config: of all contexts.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: int,
        *,
        shuffle_seed: int | None = None,
        lost: Callable[[Message], bool] | None = None,
        run_id: int = 1,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        TaskIdentity.task_id = TaskIdentity.node_id = 1
        TaskIdentity.run_id = run_id
        self.client_app = client_app
        self.lost = lost
        self.contexts = {
            FIRST_NODE_ID + partition: Context(
                run_id=run_id,
                node_id=FIRST_NODE_ID + partition,
                node_config={"partition-id": partition, "num-partitions": nodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for partition in range(nodes)
        }
        self._order = None if shuffle_seed is None else random.Random(shuffle_seed)
        self._sent = 0
        # The older generation's server asks each client from a thread of its own; clients that
        # draw from torch's global generator must not be interleaved.
        self._one_at_a_time = threading.Lock()
        self._run = Run.create_empty(run_id)

    def set_run(self, run: Run) -> None:
        """See ``Grid.set_run``."""
        self._run = run

    @property
    def run(self) -> Run:
        """See ``Grid.run``."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See ``Grid.create_message``."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """See ``Grid.get_node_ids``."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See ``Grid.push_messages``."""
        raise NotImplementedError("strategies use send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See ``Grid.pull_messages``."""
        raise NotImplementedError("strategies use send_and_receive")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the clients asked, one after the other, and return their replies."""
        with self._one_at_a_time:
            wires = [self._to_wire(message) for message in messages]  # all before any client runs
            if self.lost is not None:
                wires = [wire for wire in wires if not self.lost(_from_wire(wire))]
            replies = [self._answer(wire) for wire in wires]
            if self._order is not None:
                self._order.shuffle(replies)
            return [_from_wire(reply) for reply in replies]

    def _to_wire(self, message: Message) -> bytes:
        self._sent += 1
        message.metadata.__dict__["_message_id"] = f"message-{self._sent}"
        content: bytes = message_to_proto(message).SerializeToString()
        return content

    def _answer(self, wire: bytes) -> bytes:
        message = _from_wire(wire)
        node_id = message.metadata.dst_node_id
        context = pickle.loads(pickle.dumps(self.contexts[node_id]))
        try:
            reply = self.client_app(message, context)
        except Exception as error:
            reason = f"{type(error)}:<'{error}'>"
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return self._to_wire(Message(Error(code, reason), reply_to=_from_wire(wire)))
        self.contexts[node_id] = context
        return self._to_wire(reply)

    def momentum(self) -> list[Buffers]:
        """What each client has kept in its state so far, in the order of partitions."""
        kept = [context.state.config_records.get(KEY) for context in self.contexts.values()]
        return [
            {} if record is None else safetensors.torch.load(cast(bytes, record[KEY]))
            for record in kept
        ]


def _from_wire(wire: bytes) -> Message:
    proto = ProtoMessage()
    proto.ParseFromString(wire)
    return message_from_proto(proto)
