"""The four steps of a round, around the inner strategy's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fixbn_flwr.array_records import record_of
from fixbn_flwr.flower_compat import make_message
from fixbn_flwr.log import logger
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.method.round_config import MOMENTUM
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.server.aggregation import aggregate
from fixbn_flwr.server.defined_replies import with_defined_metrics
from fixbn_flwr.server.dropped_replies import DroppedReplyLog
from fixbn_flwr.server.evaluation_checks import check_evaluation
from fixbn_flwr.server.failed_rounds import FailedRounds, has_diverged
from fixbn_flwr.server.global_model import GlobalModel, statistics_of
from fixbn_flwr.server.inner_strategy import InnerStrategy
from fixbn_flwr.server.model_view import ModelView
from fixbn_flwr.server.outgoing_messages import add_config, contents_of, copies_of
from fixbn_flwr.server.reply_checks import check_reply
from fixbn_flwr.server.reply_collection import CheckedReply, RoundMessages, Selection
from fixbn_flwr.server.resumption import Resumption
from fixbn_flwr.server.whole_models import show_whole_models


class RoundSteps(Strategy):
    """A strategy's four methods of a round, with FixBN's rules around an inner strategy's methods.

    Args:
        strategy: The inner strategy.
        inner: What is known of it.
        state: FixBN's rules.
        strict: Raise, instead of warn, when a client returns frozen statistics changed.
        max_extra_bytes: See ``FixBN``.

    Attributes:
        checkpoints: The rounds after which the run can be resumed.
    """

    def __init__(
        self,
        strategy: Strategy,
        inner: InnerStrategy,
        state: ServerState,
        *,
        strict: bool,
        max_extra_bytes: int | None,
    ) -> None:
        self.strategy = strategy
        self.strict = strict
        self.checkpoints: Sequence[int] = ()
        self._inner = inner
        self._state = state
        self._max_extra_bytes = max_extra_bytes
        self._view = ModelView(
            state,
            defends=inner.defends,
            arrays_key=inner.arrays_key,
            weighted_by=inner.weighted_by,
        )
        show_whole_models(inner.layers, self._view)
        self._resumption = Resumption(inner.layers)
        self._statistics: dict[str, Array] = {}  # as the last round left them
        self._messages = RoundMessages((), ())
        self._failed_rounds = FailedRounds()
        self._dropped_log = DroppedReplyLog()

    def _begin_run(self, run: int, num_rounds: int, rounds_before: int, names: list[str]) -> None:
        """Forget an earlier run."""
        self._state.start(num_rounds, names)
        self._inner.warn_of_uncovered(global_momentum=self._state.averages_momentum)
        self._resumption.begin(run, rounds_before, self._state)
        self._statistics = {}
        self._failed_rounds = FailedRounds(ever_succeeded=rounds_before > 0)
        self._dropped_log = DroppedReplyLog()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages, with statistics and FixBN's instructions."""
        self._take(arrays)
        model = self._view.model
        instructions = self._resumption.add_to(
            self._state.begin_round(server_round, model.rest), self.checkpoints
        )
        self._resumption.return_point.keep(server_round, arrays, self._state)
        logger.info("FixBN: round %s is %s", server_round, instructions.phase)
        messages = copies_of(
            self.strategy.configure_train(server_round, model.parameters, config, grid)
        )
        self._view.put_into(messages)
        contents = contents_of(messages)
        add_config(contents, instructions.as_config(), self._inner.config_key)
        if self._state.global_momentum:
            momentum = record_of(self._state.global_momentum)
            for content in contents:
                content[MOMENTUM] = momentum
        self._messages = RoundMessages(messages, grid.get_node_ids())
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies; let the inner strategy average parameters, average statistics here."""
        selection, undefined = self._select(server_round, replies, self._check_reply)
        usable, sampled = len(selection.usable), len(self._messages)
        signals = self._state.observe(
            {client: checked.update for client, checked in selection.checked.items()},
            self._view.model.arrays,
        )
        whole, metrics, failure = None, None, None
        if usable:
            whole, metrics, failure = aggregate(
                server_round, selection, self._view, self._inner, self._state
            )
        diverged = has_diverged(selection.dropped, failure, sampled)
        if self._state.switch.end_round(server_round, signals, diverged=diverged):
            whole = self._resumption.return_point.go_back(self._state)
        elif sampled:
            self._failed_rounds.count(
                server_round, usable, selection.dropped, failure=failure, phase=self._state.phase
            )
        if whole is not None:
            self._statistics = statistics_of(whole)
        if sampled:
            counts = {"fixbn-clients": usable, "fixbn-dropped": sampled - usable}
            counts |= {"fixbn-undefined": undefined} if undefined else {}
            metrics = MetricRecord({**(metrics or {}), **counts, **self._state.metrics(signals)})
        return whole, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages, with whole models.

        A whole model of the user's code, such as the best one, keeps its own statistics.
        """
        self._take(arrays)
        model = self._view.model
        messages = copies_of(
            self.strategy.configure_evaluate(server_round, model.parameters, config, grid)
        )
        self._view.put_into(messages, own_statistics=True)
        self._messages = RoundMessages(messages, grid.get_node_ids())
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the inner strategy average the usable evaluations; it sees the errors too."""
        selection, _ = self._select(server_round, replies, self._check_evaluation)
        accepted = [
            make_message(metadata=reply.metadata, content=checked.content)
            for reply, checked in selection.usable.values()
        ]
        return self.strategy.aggregate_evaluate(server_round, [*accepted, *selection.errors])

    def _select(
        self,
        server_round: int,
        replies: Iterable[Message],
        check: Callable[[Message], CheckedReply[RecordDict]],
    ) -> tuple[Selection[int, Message, RecordDict], int]:
        selection = self._messages.select(server_round, replies, check, self._dropped_log)
        return with_defined_metrics(server_round, selection)

    def _check_reply(self, reply: Message) -> CheckedReply[RecordDict]:
        self._inner.check_reply(reply.content)
        client = reply.metadata.src_node_id
        checked = check_reply(
            reply.content,
            self._view.model.arrays,
            arrays_key=self._inner.arrays_key,
            weighted_by=self._inner.weighted_by,
            with_momentum=self._state.averages_momentum,
            max_extra_bytes=self._max_extra_bytes,
            note=partial(self._dropped_log.note, client),
        )
        self._state.check_unmoved(client, checked.update, strict=self.strict)
        return checked

    def _check_evaluation(self, reply: Message) -> CheckedReply[RecordDict]:
        return check_evaluation(
            reply.content,
            self._view.model.arrays,
            weighted_by=self._inner.weighted_by,
            max_extra_bytes=self._max_extra_bytes,
        )

    def _take(self, arrays: ArrayRecord) -> None:
        """Split the global model, once for a round's evaluation and the next round's training."""
        if arrays is not self._view.model.record:
            self._view.model = GlobalModel(arrays)
            self._view.model.check_statistics(self._statistics)
