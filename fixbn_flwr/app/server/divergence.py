"""Warn once if a run diverges with frozen statistics, by its tests on the server."""

from __future__ import annotations

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.reader import CHECKPOINTS
from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.app.runs.writer import RunFolder
from fixbn_flwr.log import logger
from fixbn_flwr.method.schedule import Phase

DIVERGED = 5.0  # times the test loss at T*; a model that learns slowly stays well below
BY_CHANCE = 1.2  # times the accuracy of guessing; a model that falls below it is lost


class DivergenceWarning:
    """Compares the tests of calibration with that of round T*.

    Args:
        folder: The run folder, which has the metrics of all rounds.
        chance: The accuracy of guessing.
    """

    def __init__(self, folder: RunFolder, *, chance: float) -> None:
        self._folder = folder
        self._chance = chance
        self._warned = False

    def warn(self, metrics: RoundMetrics, settings: Settings, factor: float) -> None:
        """Log a warning if the model is lost, unless one was logged before.

        Args:
            metrics: The round's metrics.
            settings: The run config, with the T* of the run.
            factor: The learning-rate factor of the round.
        """
        at_freeze = self._folder.metrics_of(settings.freeze_round)
        if self._warned or metrics.phase is Phase.EXPLORATION or at_freeze is None:
            return
        if _has_diverged(metrics, at_freeze, self._chance):
            self._warned = True
            logger.warning(
                "round %s: test loss %.3g, accuracy %.1f %%; they were %.3g and %.1f %% at "
                "T* = %s: the run diverges in calibration. Use a smaller learning-rate-factor, "
                "such as %g: delete the checkpoints after T* from %s and resume the run with "
                'may-change="learning-rate-factor", or start a new run.',
                metrics.round, metrics.test_loss, 100 * (metrics.test_accuracy or 0),
                at_freeze.test_loss, 100 * (at_freeze.test_accuracy or 0),
                settings.freeze_round, factor / 10, self._folder.path / CHECKPOINTS,
            )  # fmt: skip


def _has_diverged(now: RoundMetrics, at_freeze: RoundMetrics, chance: float) -> bool:
    """Return whether the model is lost, by a test after T*."""
    if now.test_loss is None or at_freeze.test_loss is None:
        return False
    accuracy, before = now.test_accuracy or 0.0, at_freeze.test_accuracy or 0.0
    fell = before > 2 * BY_CHANCE * chance and accuracy <= BY_CHANCE * chance
    return fell or not now.test_loss <= DIVERGED * at_freeze.test_loss  # also if NaN
