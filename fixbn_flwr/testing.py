"""A federation in one process, without Ray, to test a Flower project in milliseconds.

Messages pass as protobuf bytes and contexts as pickles, as they do between SuperLink and SuperNode
and between Ray's processes, so nothing is shared by reference. A client that raises answers with
the error reply that Flower's simulation sends, and loses what it wrote to its context, as there. A
run gives the same bits here as through `flwr run`.
"""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fixbn_flwr.engine.simulated_grid import FIRST_NODE_ID, SimulatedGrid
from fixbn_flwr.flower_compat import (
    ErrorCode,
    message_from_bytes,
    message_to_bytes,
)

__all__ = ["FIRST_NODE_ID", "SerializingGrid"]


class SerializingGrid(SimulatedGrid):
    """A Grid that calls a ClientApp for each message, one node after the other.

    Each node keeps one ``Context`` for the life of the grid. The grid sets Flower's process-wide
    task identity, so use one grid at a time.

    Examples:
        >>> from flwr.app import ArrayRecord, MetricRecord
        >>> from flwr.serverapp.strategy import FedAvg
        >>> import torch
        >>> app = ClientApp()
        >>> @app.train()
        ... def train(message, context):
        ...     arrays = message.content["arrays"]
        ...     metrics = MetricRecord({"num-examples": 1, "loss": 0.5})
        ...     return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
        >>> grid = SerializingGrid(app, nodes=2)
        >>> arrays = ArrayRecord(torch.nn.BatchNorm1d(2).state_dict())
        >>> result = FedAvg(fraction_evaluate=0.0).start(grid, arrays, num_rounds=1)
        >>> result.train_metrics_clientapp[1]["loss"]
        0.5

    Args:
        client_app: The app that every node runs.
        nodes: The number of nodes. Node ``FIRST_NODE_ID + i`` holds partition ``i``.
        shuffle_seed: Seed of the order in which replies come back. None (the default) keeps the
            order of the messages.
        lost: Returns whether a message gets no reply. None (the default) loses none.
        run_id: The run id of all contexts.
        run_config: The run config of all contexts. Default: empty.
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
        super().__init__(nodes, run_id)
        self.client_app = client_app
        self.lost = lost
        self.contexts = {
            node_id: Context(
                run_id=run_id,
                node_id=node_id,
                node_config={**self._config_of(node_id)},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node_id in super().get_node_ids()
        }
        self._order = None if shuffle_seed is None else random.Random(shuffle_seed)
        self._sent = 0
        self._replies: dict[str, bytes] = {}  # not pulled yet, by the message that they answer
        # The older generation's server asks each client from its own thread. Clients that draw
        # from torch's global generator must not be interleaved.
        self._one_at_a_time = threading.Lock()

    def get_node_ids(self) -> Iterable[int]:
        """See ``Grid.get_node_ids``."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the client of each message, and keep the replies until they are pulled."""
        with self._one_at_a_time:
            sent = [self._serialized(message) for message in messages]  # before any client runs
            for message_id, content in sent:
                if self.lost is None or not self.lost(message_from_bytes(content)):
                    self._replies[message_id] = self._answer(content)
        return [message_id for message_id, _ in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that have not been pulled yet."""
        with self._one_at_a_time:
            replies = [self._replies.pop(i) for i in message_ids if i in self._replies]
            if self._order is not None:
                self._order.shuffle(replies)
        return [message_from_bytes(reply) for reply in replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the client of each message and return the replies."""
        return self.pull_messages(self.push_messages(messages))

    def _serialized(self, message: Message) -> tuple[str, bytes]:
        self._sent += 1
        message_id = f"message-{self._sent}"
        message.metadata.__dict__["_message_id"] = message_id
        return message_id, message_to_bytes(message)

    def _answer(self, content: bytes) -> bytes:
        message = message_from_bytes(content)
        node_id = message.metadata.dst_node_id
        context = pickle.loads(pickle.dumps(self.contexts[node_id]))
        try:
            reply = self.client_app(message, context)
        except Exception as error:
            reason = f"{type(error)}:<'{error}'>"
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            reply = Message(Error(code, reason), reply_to=message_from_bytes(content))
        else:
            self.contexts[node_id] = context
        return self._serialized(reply)[1]
