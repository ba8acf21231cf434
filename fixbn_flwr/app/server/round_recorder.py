"""What the server app writes down after every round: metrics, the best model, a checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import cast

from flwr.app import ArrayRecord, Message, MetricRecord

from fixbn_flwr.app.client.numpy_client import workbench_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.momentum_files import folder_of, warn_of_full_disk
from fixbn_flwr.app.runs.reader import CHECKPOINTS
from fixbn_flwr.app.runs.summary import RoundMetrics, round_line
from fixbn_flwr.app.runs.writer import RunFolder
from fixbn_flwr.app.server.client_registry_grid import Federation
from fixbn_flwr.app.server.rng_state import random_state
from fixbn_flwr.app.training import evaluate
from fixbn_flwr.array_records import arrays_of
from fixbn_flwr.method.averaging import Arrays
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.persistence.checkpoints import Checkpoints
from fixbn_flwr.persistence.safetensors_tree import Tree
from fixbn_flwr.server.strategy import FixBN
from fixbn_flwr.tasks import Split, Task

DIVERGED = 5.0  # times the test loss at T*: one that only learns slowly stays well below
BY_CHANCE = 1.2  # times the accuracy of guessing: who has fallen that low knows nothing any more

_logger = logging.getLogger("flwr.fixbn")


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
        strategy: knows what the clients reported, and what it must have to go on.
        folder: where everything is written.
        rounds_before: how many rounds were done when this run began; above 0 in a resumed one.
        best: the best model of them, by name.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        test: Split,
        federation: Federation,
        strategy: RecordedFixBN,
        folder: RunFolder,
        rounds_before: int = 0,
        best: Arrays | None = None,
    ) -> None:
        self._settings = settings
        self._task = task
        self._test = test
        self._federation = federation
        self._strategy = strategy
        self._folder = folder
        self._rounds_before = rounds_before
        self._best = best
        self._checkpoints = Checkpoints(
            folder.path / CHECKPOINTS, settings.keep_checkpoints, always=[settings.freeze_round]
        )
        self._last: tuple[int, Tree] | None = None
        self._at_freeze = folder.metrics_of(settings.freeze_round)
        self._started = time.monotonic()
        self._bytes = (0, 0)
        self._tell_checkpoints()

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Record a round; the call before the first one to run starts the clock."""
        if server_round == self._rounds_before:
            self._started = time.monotonic()
            self._bytes = (self._federation.bytes_sent, self._federation.bytes_received)
            return None
        if server_round == self._rounds_before + 1:
            state = folder_of(self._settings, self._folder.run)
            if state is not None:
                files = self._settings.keep_checkpoints + 3  # T*, the round before, the newest
                warn_of_full_disk(state, self._folder.clients, files)
        evaluated = self._settings.evaluates(server_round)
        loss, accuracy = self._evaluate(arrays) if evaluated else (None, None)
        metrics = self._metrics(server_round, loss, accuracy)
        print(round_line(metrics, self._settings.num_server_rounds))
        self._warn_of_divergence(metrics)
        is_best = self._folder.append(metrics)
        if is_best:
            self._best = arrays_of(arrays)
            self._folder.save_model("best", self._best)
        if self._settings.checkpoint_every:
            self._last = (server_round, self._checkpoint(server_round, arrays, is_best))
        if self._settings.keeps_checkpoint(server_round):
            self.save_checkpoint()
        self._tell_checkpoints()
        if loss is None or accuracy is None:
            return None
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the last round that has ended, if there is not one already.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._last is None:
            return
        (server_round, checkpoint), self._last = self._last, None
        self._checkpoints.save(server_round, checkpoint)

    def _checkpoint(self, server_round: int, arrays: ArrayRecord, is_best: bool) -> Tree:
        """Return what :class:`fixbn_flwr.app.server.resumed_run.Earlier` goes on from."""
        return {
            "phase": str(self._settings.phase(server_round)),
            "model": arrays,
            "best": True if is_best else self._best,  # the model need not be there twice
            "strategy": self._strategy.state(),
            "metrics": list(self._folder.lines),
            "random": random_state(),
        }

    def _warn_of_divergence(self, metrics: RoundMetrics) -> None:
        """Say, once, that the frozen statistics do not bear the learning rate."""
        if metrics.round == self._settings.freeze_round:
            self._at_freeze = metrics
        if metrics.phase is Phase.EXPLORATION or self._at_freeze is None:
            return
        if _has_diverged(metrics, self._at_freeze, chance=1 / self._task.classes):
            _logger.warning(
                "round %s: the test loss is %.3g, the accuracy %.1f %%, and they were %.3g and "
                "%.1f %% at T* = %s: the run diverges in calibration. A smaller "
                "learning-rate-factor helps, such as %g: remove what is later than T* from %s and "
                'resume the run with may-change="learning-rate-factor", or start it again',
                metrics.round, metrics.test_loss, 100 * (metrics.test_accuracy or 0),
                self._at_freeze.test_loss, 100 * (self._at_freeze.test_accuracy or 0),
                self._settings.freeze_round, self._settings.learning_rate_factor / 10,
                self._folder.path / CHECKPOINTS,
            )  # fmt: skip
            self._at_freeze = None

    def _tell_checkpoints(self) -> None:
        """Let clients that keep momentum in files keep what they would need to go back."""
        if self._settings.momentum == "local":
            # Of the last round that has ended, too: should the next one fail, it is written.
            ended = [self._last[0]] if self._last else []
            self._strategy.checkpoints = [*self._checkpoints.rounds(), *ended]

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


def _has_diverged(now: RoundMetrics, at_freeze: RoundMetrics, chance: float) -> bool:
    """Tell whether a test after T* shows that the model is lost.

    Args:
        now: the round's metrics.
        at_freeze: those of T*.
        chance: the accuracy of guessing.
    """
    if now.test_loss is None or at_freeze.test_loss is None:
        return False
    accuracy, before = now.test_accuracy or 0.0, at_freeze.test_accuracy or 0.0
    fell = before > 2 * BY_CHANCE * chance and accuracy <= BY_CHANCE * chance
    return fell or not now.test_loss <= DIVERGED * at_freeze.test_loss  # NaN is no number
