"""Run the last rounds of a run with Flower's loop, which always counts from 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fixbn_flwr.errors import ConfigError

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


def check_first_round(first_round: int, num_rounds: int) -> None:
    """Refuse a first round that is not one of the rounds.

    Raises:
        ConfigError: If it is below 1 or after the last round.
    """
    if not 1 <= first_round <= max(num_rounds, 1):
        raise ConfigError(
            f"first_round={first_round} is not one of the rounds 1 to {num_rounds}: give the "
            "round after the last one that is done."
        )


class LaterRounds(Strategy):
    """A strategy whose round 1 is a later round of another strategy.

    Args:
        strategy: The other strategy. Every round number that it sees is a round of the whole run.
        rounds_before: The number of rounds that are done already.
    """

    def __init__(self, strategy: Strategy, rounds_before: int) -> None:
        self._strategy = strategy
        self._before = rounds_before

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run the rounds that are left of ``num_rounds``; see ``Strategy.start`` for the rest.

        Returns:
            The result, with its metrics by the rounds of the whole run.
        """

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            assert evaluate_fn is not None
            return evaluate_fn(self._before + server_round, arrays)

        result = super().start(
            grid,
            initial_arrays,
            num_rounds - self._before,
            timeout,
            train_config,
            evaluate_config,
            evaluate if evaluate_fn else None,
        )
        for metrics in (
            result.train_metrics_clientapp,
            result.evaluate_metrics_clientapp,
            result.evaluate_metrics_serverapp,
        ):
            renumbered = {self._before + number: record for number, record in metrics.items()}
            metrics.clear()
            metrics.update(renumbered)
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See ``Strategy.configure_train``."""
        return self._strategy.configure_train(self._before + server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See ``Strategy.aggregate_train``."""
        return self._strategy.aggregate_train(self._before + server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See ``Strategy.configure_evaluate``."""
        return self._strategy.configure_evaluate(self._before + server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """See ``Strategy.aggregate_evaluate``."""
        return self._strategy.aggregate_evaluate(self._before + server_round, replies)

    def summary(self) -> None:
        """See ``Strategy.summary``."""
        self._strategy.summary()
