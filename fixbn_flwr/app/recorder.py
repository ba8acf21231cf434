"""What the server app writes down after every round: metrics, and the best model so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import cast

from flwr.app import ArrayRecord, Message, MetricRecord

from fixbn_flwr.app.config import Settings
from fixbn_flwr.app.federation import Federation
from fixbn_flwr.app.run_folder import RunFolder
from fixbn_flwr.app.summary import RoundMetrics, round_line
from fixbn_flwr.arrays import arrays_of
from fixbn_flwr.client import workbench_of
from fixbn_flwr.strategy import FixBN
from fixbn_flwr.tasks import Split, Task
from fixbn_flwr.training import evaluate


class RecordedFixBN(FixBN):
    """FixBN that remembers what the clients of the last round reported."""

    reported: MetricRecord | None = None
    train_seconds: float | None = None  # of the slowest client

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """End a round, see ``FixBN``."""
        replies = list(replies)
        self.train_seconds = max(_train_seconds(replies), default=None)
        arrays, self.reported = super().aggregate_train(server_round, replies)
        return arrays, self.reported


def _train_seconds(replies: Iterable[Message]) -> Iterator[float]:
    """Yield the seconds that each client says it trained."""
    for reply in replies:
        records = reply.content.metric_records.values() if reply.has_content() else ()
        for record in records:
            seconds = record.get("train-seconds")
            # Not yet checked: a client may say anything.
            if isinstance(seconds, int | float) and 0 <= seconds < 1e9:
                yield float(seconds)


class Recorder:
    """The ``evaluate_fn`` of ``Strategy.start``: tests the global model and records the round.

    Args:
        settings: the validated run config.
        task: gives model, loss and metric.
        test: the images to evaluate on.
        federation: counts the bytes.
        strategy: knows what the clients reported.
        folder: where everything is written.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        test: Split,
        federation: Federation,
        strategy: RecordedFixBN,
        folder: RunFolder,
    ) -> None:
        self._settings = settings
        self._task = task
        self._test = test
        self._federation = federation
        self._strategy = strategy
        self._folder = folder
        self._started = time.monotonic()
        self._bytes = (0, 0)

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Record a round; the call before the first, with the initial model, starts the clock."""
        if server_round == 0:
            self._started = time.monotonic()
            self._bytes = (self._federation.bytes_sent, self._federation.bytes_received)
            return None
        evaluated = self._settings.evaluates(server_round)
        loss, accuracy = self._evaluate(arrays) if evaluated else (None, None)
        metrics = self._metrics(server_round, loss, accuracy)
        print(round_line(metrics, self._settings.num_server_rounds))
        if self._folder.append(metrics):
            self._folder.save_model("best", arrays_of(arrays))
        if loss is None or accuracy is None:
            return None
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    def _metrics(
        self, server_round: int, loss: float | None, accuracy: float | None
    ) -> RoundMetrics:
        """Put the round's line together; the next round's seconds and bytes count from here."""
        reported = cast(dict[str, float], self._strategy.reported or {})
        train_loss: object = reported.get("train-loss")
        started, self._started = self._started, time.monotonic()
        sent, received = self._bytes
        self._bytes = (self._federation.bytes_sent, self._federation.bytes_received)
        return RoundMetrics(
            round=server_round,
            phase=self._settings.phase(server_round),
            learning_rate=self._settings.effective_learning_rate(server_round),
            train_loss=train_loss if isinstance(train_loss, float) else None,
            test_loss=loss,
            test_accuracy=accuracy,
            bytes_sent=self._bytes[0] - sent,
            bytes_received=self._bytes[1] - received,
            seconds=self._started - started,
            clients=int(reported.get("fixbn-clients", 0)),
            dropped=int(reported.get("fixbn-dropped", 0)),
            train_seconds=self._strategy.train_seconds,
        )

    def _evaluate(self, arrays: ArrayRecord) -> tuple[float, float]:
        bench = workbench_of(self._task, self._settings)
        bench.load(arrays_of(arrays))
        return evaluate(bench, self._task, self._test)
