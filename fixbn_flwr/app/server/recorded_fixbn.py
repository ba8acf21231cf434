"""FixBN that keeps what the clients reported in the last round."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fixbn_flwr.errors import ReplyError
from fixbn_flwr.server.reply_collection import CheckedReply
from fixbn_flwr.server.reply_limits import shown
from fixbn_flwr.server.strategy import FixBN


class RecordedFixBN(FixBN):
    """FixBN that keeps what the clients reported in the last round.

    Attributes:
        reported: The averaged metrics of the training; None before the first round.
        train_seconds: The slowest client's training time; None if no client reported it.
        validated: What ``ReproducibleFedAvg.aggregate_evaluate`` returned; None in a round without
            validation.
    """

    reported: MetricRecord | None = None
    train_seconds: float | None = None
    validated: MetricRecord | None = None

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate a round, and keep what the clients reported."""
        replies = list(replies)
        self.train_seconds = max(_train_seconds(replies), default=None)
        arrays, self.reported = super().aggregate_train(server_round, replies)
        return arrays, self.reported

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the clients' validations, and keep them."""
        self.validated = super().aggregate_evaluate(server_round, replies)
        return self.validated

    def _check_evaluation(self, reply: Message) -> CheckedReply[RecordDict]:
        """Also refuse an accuracy that would distort the choice of the best model."""
        checked = super()._check_evaluation(reply)
        (metrics,) = checked.content.metric_records.values()
        accuracy, loss = metrics.get("accuracy"), metrics.get("loss")
        if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
            raise ReplyError(
                f"its accuracy is {shown(accuracy)} and must be a number from 0 to 1: let the "
                "task's metric return one."
            )
        if not isinstance(loss, int | float):
            raise ReplyError(
                f"its loss is {shown(loss)} and must be a number: let the task's loss return one."
            )
        return checked


def _train_seconds(replies: Iterable[Message]) -> Iterator[float]:
    """Yield the training time that each client reported."""
    for reply in replies:
        records = reply.content.metric_records.values() if reply.has_content() else ()
        for record in records:
            seconds = record.get("train-seconds")
            # The replies are not checked yet.
            if isinstance(seconds, int | float) and 0 <= seconds < 1e9:
                yield float(seconds)
