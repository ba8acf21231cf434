"""Record each round of the server app: metrics, the best model and checkpoints."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast

from flwr.app import ArrayRecord, MetricRecord

from fixbn_flwr.app.client.image_client import workbench_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.round_display import RoundDisplay
from fixbn_flwr.app.runs.momentum_files import folder_of, warn_of_full_disk
from fixbn_flwr.app.runs.reader import CHECKPOINTS
from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.app.runs.tracked import log_round
from fixbn_flwr.app.runs.writer import RunFolder
from fixbn_flwr.app.server.client_registry_grid import ClientRegistryGrid
from fixbn_flwr.app.server.client_validation import validation_metrics
from fixbn_flwr.app.server.divergence import DivergenceWarning
from fixbn_flwr.app.server.recorded_fixbn import RecordedFixBN
from fixbn_flwr.app.server.rng_state import random_state
from fixbn_flwr.app.training import evaluate
from fixbn_flwr.array_records import arrays_of
from fixbn_flwr.method.averaging import Arrays
from fixbn_flwr.method.schedule import AUTO
from fixbn_flwr.persistence.checkpoint_writer import CheckpointWriter
from fixbn_flwr.persistence.checkpoints import Checkpoints
from fixbn_flwr.persistence.safetensors_tree import Tree
from fixbn_flwr.tasks import Split, Task
from fixbn_flwr.tracking import Tracking


class Recorder:
    """The ``evaluate_fn`` of ``Strategy.start``: tests the global model and records the round.

    Args:
        settings: The validated run config.
        task: The model, loss and metric.
        test: The images to test on; None if the server has none.
        grid: Counts the bytes, and knows the clients.
        strategy: Has what the clients reported, and its state for checkpoints.
        folder: The run folder.
        tracking: Logs every round.
        rounds_before: The number of rounds done before; above 0 in a resumed run. Default: 0.
        best: The best model of them, by name. Default: none.
    """

    def __init__(
        self,
        settings: Settings,
        task: Task,
        test: Split | None,
        grid: ClientRegistryGrid,
        strategy: RecordedFixBN,
        folder: RunFolder,
        tracking: Tracking,
        rounds_before: int = 0,
        best: Arrays | None = None,
    ) -> None:
        self._settings = settings
        self._task = task
        self._test = test
        self._grid = grid
        self._strategy = strategy
        self._folder = folder
        self._tracking = tracking
        self._rounds_before = rounds_before
        self._best = best
        self._always_kept = {settings.freeze_round}
        self._checkpoints = CheckpointWriter(
            Checkpoints(folder.path / CHECKPOINTS, settings.keep_checkpoints, self._always_kept)
        )
        self._last: tuple[int, Tree] | None = None
        self._display = RoundDisplay(settings, rounds_before)
        self._divergence = DivergenceWarning(folder, chance=1 / task.classes)
        self._started = time.monotonic()
        self._bytes = (0, 0)
        self._announce_checkpoints()

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Record a round; the call before the first round starts the clock."""
        if server_round == self._rounds_before:
            self._display.start()
            self._take_decision()
            self._started = time.monotonic()
            self._bytes = (self._grid.bytes_sent, self._grid.bytes_received)
            return None
        if server_round == self._rounds_before + 1:
            state = folder_of(self._settings, self._folder.run)
            if state is not None:
                files = self._settings.keep_checkpoints + 3  # T*, the round before, and the newest
                warn_of_full_disk(state, self._folder.clients, files)
        self._take_decision()
        tested = self._settings.evaluates(server_round)
        loss, accuracy = self._evaluate(arrays) if tested else (None, None)
        metrics = self._metrics(server_round, loss, accuracy)
        self._display.show(metrics)
        is_best = self._folder.append(metrics)
        log_round(self._tracking, metrics)
        self._divergence.warn(metrics, self._settings, self._strategy.learning_rate_factor)
        if is_best:
            self._best = arrays_of(arrays)
            self._folder.save_model("best", self._best)
        if self._settings.checkpoint_every:
            self._last = (server_round, self._checkpoint(server_round, arrays, is_best))
        if self._ends_early(metrics) or self._settings.keeps_checkpoint(server_round):
            self._save_checkpoint()
        self._announce_checkpoints()
        if loss is None or accuracy is None:
            return None
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    def _take_decision(self) -> None:
        """Go on with the T* that the run has decided, once it has."""
        freeze_round = self._strategy.freeze_round
        if self._settings.freeze_after != AUTO or freeze_round is None:
            return
        self._settings = replace(self._settings, freeze_after=freeze_round)
        self._always_kept.add(freeze_round)
        reason = self._strategy.freeze_reason
        self._folder.record_decision(freeze_round, reason)
        never = freeze_round >= self._settings.num_server_rounds
        print(f"{'No freeze' if never else f'T* = {freeze_round}'}: {reason}")

    def close(self) -> None:
        """Stop the display, and write a checkpoint of the last round, unless there is one.

        Raises:
            CheckpointError: If it cannot be written.
        """
        self._display.close()
        self._save_checkpoint()
        self._checkpoints.wait()

    def _save_checkpoint(self) -> None:
        if self._last is not None:
            (server_round, checkpoint), self._last = self._last, None
            self._checkpoints.save(server_round, checkpoint)

    def _ends_early(self, metrics: RoundMetrics) -> bool:
        """Stop the run if it is out of patience; return whether it is."""
        best = self._folder.best_round
        if metrics.validation_accuracy is None or best is None:
            return False
        if not self._settings.is_out_of_patience(metrics.round, best.round):
            return False
        if metrics.round < self._settings.num_server_rounds:
            print(
                f"No better validation accuracy since round {best.round}: the run ends (patience)"
            )
            self._strategy.stop()
        return True

    def _checkpoint(self, server_round: int, arrays: ArrayRecord, is_best: bool) -> Tree:
        """Return what :class:`fixbn_flwr.app.server.resumed_run.ResumedRun` needs."""
        return {
            "phase": str(self._strategy.phase),
            "model": arrays,
            "best": True if is_best else self._best,  # do not store the model twice
            "strategy": self._strategy.state(),
            "metrics": list(self._folder.lines),
            "random": random_state(),
        }

    def _announce_checkpoints(self) -> None:
        """Announce the checkpoint rounds, so that clients keep the momentum to roll back to."""
        if self._settings.momentum == "local":
            # The last round gets a checkpoint, too, if the next one fails.
            ended = [self._last[0]] if self._last else []
            self._strategy.checkpoints = [*self._checkpoints.rounds, *ended]

    def _metrics(
        self, server_round: int, loss: float | None, accuracy: float | None
    ) -> RoundMetrics:
        """Return the round's metrics, and start to count the next round's seconds and bytes."""
        reported = cast(dict[str, float], self._strategy.reported or {})
        train_loss: object = reported.get("train-loss")
        started, self._started = self._started, time.monotonic()
        sent, received = self._bytes
        self._bytes = (self._grid.bytes_sent, self._grid.bytes_received)
        rate = self._settings.learning_rate_at(server_round)
        signals = self._strategy.signals
        return RoundMetrics(
            round=server_round,
            phase=self._strategy.phase,
            # 0.05 x 0.1 is 0.005000000000000001; nothing is computed with this value.
            learning_rate=float(f"{rate * self._strategy.learning_rate_factor:.12g}"),
            train_loss=train_loss if isinstance(train_loss, float) else None,
            test_loss=loss,
            test_accuracy=accuracy,
            bytes_sent=self._bytes[0] - sent,
            bytes_received=self._bytes[1] - received,
            seconds=self._started - started,
            clients=int(reported.get("fixbn-clients", 0)),
            dropped=int(reported.get("fixbn-dropped", 0)),
            train_seconds=self._strategy.train_seconds,
            retries=int(reported.get("fixbn-retries", 0)),
            signals=signals.as_metrics() if signals else {},
            disagreement_by_layer=signals.by_layer if signals else {},
            **validation_metrics(self._strategy.validated, self._grid.label_of),
        )

    def _evaluate(self, arrays: ArrayRecord) -> tuple[float, float]:
        assert self._test is not None  # evaluate-every is not 0
        bench = workbench_of(self._task, self._settings)
        bench.load(arrays_of(arrays))
        return evaluate(bench, self._task, self._test)
