"""Run the last rounds of a run with Flower's loop, which always counts from 1."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.server.own_start import with_rounds_of

_TIMEOUT = 3600.0  # seconds, Flower's default
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


def _accepts(function: Callable[..., object], argument: str) -> bool:
    parameters = inspect.signature(function).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


class _Stopped(Exception):  # noqa: N818 -- not an error
    """Ends Flower's loop before its next round."""


class LaterRounds(Strategy):
    """A strategy whose round 1 is a later round of another strategy, and which can stop early.

    Args:
        strategy: The other strategy. Every round number that it sees is a round of the whole run.
        rounds_before: The number of rounds that are done already.
        stops: Returns whether the run ends after the current round.
        own: A strategy whose own ``start()`` is the loop. Default: Flower's loop.
    """

    def __init__(
        self,
        strategy: Strategy,
        rounds_before: int,
        stops: Callable[[], bool] = lambda: False,
        own: Strategy | None = None,
    ) -> None:
        self._strategy = strategy
        self._own = own
        self._before = rounds_before
        self._stops = stops
        self._result = Result()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = _TIMEOUT,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run the rounds that are left of ``num_rounds``; see ``Strategy.start`` for the rest.

        Returns:
            The result, with its metrics by the rounds of the whole run; of an own ``start()`` what
            it returns, unless the run was stopped.
        """

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            assert evaluate_fn is not None
            metrics = evaluate_fn(self._before + server_round, arrays)
            if metrics is not None:
                self._result.evaluate_metrics_serverapp[self._before + server_round] = metrics
            return metrics

        self._result = Result(arrays=initial_arrays)
        arguments: dict[str, Any] = {
            "grid": grid,
            "initial_arrays": initial_arrays,
            "num_rounds": num_rounds - self._before,
            "timeout": timeout,
            "train_config": train_config,
            "evaluate_config": evaluate_config,
            "evaluate_fn": evaluate if evaluate_fn else None,
        }
        with suppress(_Stopped):
            if self._own is not None:
                # Its start() need not have every argument of Flower's.
                if timeout == _TIMEOUT and not _accepts(self._own.start, "timeout"):
                    del arguments["timeout"]
                given = {name: value for name, value in arguments.items() if value is not None}
                return with_rounds_of(self._own, self).start(**given)
            super().start(**arguments)
        return self._result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See ``Strategy.configure_train``."""
        if self._stops():
            raise _Stopped
        return self._strategy.configure_train(self._before + server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See ``Strategy.aggregate_train``."""
        server_round += self._before
        arrays, metrics = self._strategy.aggregate_train(server_round, replies)
        if arrays is not None:
            self._result.arrays = arrays
        if metrics is not None:
            self._result.train_metrics_clientapp[server_round] = metrics
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """See ``Strategy.configure_evaluate``."""
        return self._strategy.configure_evaluate(self._before + server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """See ``Strategy.aggregate_evaluate``."""
        server_round += self._before
        metrics = self._strategy.aggregate_evaluate(server_round, replies)
        if metrics is not None:
            self._result.evaluate_metrics_clientapp[server_round] = metrics
        return metrics

    def summary(self) -> None:
        """See ``Strategy.summary``."""
        self._strategy.summary()


LaterRounds.__name__ = "FixBN"  # Flower's log begins with the name of the class
