"""The model and the replies of a round in two views: whole for users' code, cut for Flower's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from flwr.common import ArrayRecord, Message, RecordDict

from fixbn_flwr.array_records import arrays_of, record_of, record_with
from fixbn_flwr.flower_compat import make_message
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.method.update import Update
from fixbn_flwr.server.global_model import GlobalModel
from fixbn_flwr.server.inserted_classes import RunningCode
from fixbn_flwr.server.outgoing_messages import contents_of
from fixbn_flwr.server.reply_collection import CheckedReply

Replies = Mapping[int, CheckedReply[RecordDict]]


class ModelView:
    """The global model and the usable replies of a round.

    Flower's averaging must see parameters only, but for a strategy that defends. Users' code sees
    whole models, as without FixBN.

    Args:
        state: FixBN's rules, which average what Flower's code does not see.
        defends: Whether Flower's code must see the statistics and momentum buffers too.
        arrays_key: The key of the model's record in messages.
        weighted_by: The metric that clients are weighted by.

    Attributes:
        model: The global model at the start of the round.
        flower_failed: Whether Flower's code under a user's class made no model of the replies.
        code: Whose code runs.
    """

    def __init__(
        self, state: ServerState, *, defends: bool, arrays_key: str, weighted_by: str
    ) -> None:
        self.model = GlobalModel(ArrayRecord())
        self._state = state
        self._defends = defends
        self._arrays_key = arrays_key
        self._weighted_by = weighted_by
        self._replies: Replies = {}
        self._averaged: list[Update] = []
        self.flower_failed = False
        self.code = RunningCode()
        self._others: dict[str, Array] | None = None

    def begin_aggregation(self, replies: Replies) -> None:
        """Take the usable replies of the round by client, in the order of their sums."""
        self._replies = replies
        self._averaged = [checked.update for checked in replies.values()]
        self._others = None
        self.flower_failed = False

    def put_into(self, messages: Iterable[Message], *, own_statistics: bool = False) -> None:
        """Put whole models into the contents of messages; see ``GlobalModel.put_into``."""
        contents = contents_of(messages)
        self.model.put_into(contents, self._arrays_key, own_statistics=own_statistics)

    def flower_reply(self, reply: Message) -> Message:
        """Return a reply with what Flower's code may see of it; an error reply as it is."""
        if reply.has_error():
            return reply
        checked = self._replies[reply.metadata.src_node_id]
        others = self._state.to_defend(checked.update) if self._defends else {}
        record = reply.content.array_records[checked.model_key]
        shown = record_with({**self.parameters(record), **record_of(others)})
        return _with_model(reply, checked.model_key, shown)

    def whole_reply(self, reply: Message) -> Message:
        """Return what Flower's code saw of a reply as a whole reply; an error reply as it is."""
        if reply.has_error():
            return reply
        checked = self._replies[reply.metadata.src_node_id]
        record = reply.content.array_records[checked.model_key]
        whole = checked.content.array_records[checked.model_key]
        shown = record_with({name: record.get(name, array) for name, array in whole.items()})
        return _with_model(reply, checked.model_key, shown)

    def whole_model(
        self, aggregated: ArrayRecord | None, replies: Iterable[Message]
    ) -> ArrayRecord | None:
        """Return the whole model for what Flower's code made of these replies."""
        if aggregated is None:
            self.flower_failed = True
            return None
        passed = {reply.metadata.src_node_id: reply for reply in replies if not reply.has_error()}
        # In the order of the round, whatever order the user's code passed them in, and with the
        # weights that Flower's code saw.
        self._averaged = [
            self._with_weight_in(passed[client], checked.update)
            for client, checked in self._replies.items()
            if client in passed
        ]
        self._others = self._not_parameters(aggregated)
        return self.model.joined(aggregated, self._rest(aggregated))

    def flower_model(self, returned: ArrayRecord | None) -> ArrayRecord | None:
        """Return what Flower's code may see of the model that the user's code returned."""
        if returned is None:
            return None
        others = self._not_parameters(returned) if self._others is None else self._others
        hidden = others if self._defends else {}
        return record_with({**self.parameters(returned), **record_of(hidden)})

    def new_model(self, aggregated: ArrayRecord) -> ArrayRecord:
        """Return the whole new model for what the inner strategy returned."""
        return self.model.joined(aggregated, self._rest(aggregated))

    def parameters(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the parameters of a model."""
        if arrays is self.model.record:
            return self.model.parameters
        names = self.model.parameters.keys()
        return record_with({name: array for name, array in arrays.items() if name in names})

    def _with_weight_in(self, reply: Message, update: Update) -> Update:
        records = reply.content.metric_records.values()
        metrics: dict[str, Any] = {key: value for r in records for key, value in r.items()}
        return replace(update, weight=metrics.get(self._weighted_by, update.weight))

    def _rest(self, aggregated: ArrayRecord) -> dict[str, Array]:
        defended = self._not_parameters(aggregated) if self._defends else None
        return self._state.end_round(self._averaged, self.model.rest, defended=defended)

    def _not_parameters(self, arrays: ArrayRecord) -> dict[str, Array]:
        names = arrays.keys() - self.model.parameters.keys()
        return arrays_of({name: array for name, array in arrays.items() if name in names})


def _with_model(reply: Message, key: str, model: ArrayRecord) -> Message:
    content = RecordDict({**reply.content, key: model})
    return make_message(metadata=reply.metadata, content=content)
