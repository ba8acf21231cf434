"""FixBN around any Message API strategy.

Zhong, Chen, Chao, "Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530.

The inner strategy samples clients and averages parameters. It does not see statistics and counters:
server optimizers, clipping and noise must not change them (FedAdam's defaults turn a variance of
0.03 into -0.02 in one round). Strategies that defend against hostile clients (Krum, FedMedian) are
the exception: their selection, median or trimming must apply to the statistics too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.log import logger
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.method.options import StatisticsAverage
from fixbn_flwr.method.round_config import MomentumMode
from fixbn_flwr.method.schedule import FreezeAfter, Phase
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.method.signals import Signals
from fixbn_flwr.method.switch import LearningRateFactor
from fixbn_flwr.server.inner_strategy import examine, inner_attribute, layers_of
from fixbn_flwr.server.later_rounds import EvaluateFn, LaterRounds, check_first_round
from fixbn_flwr.server.message_api_strategies import MESSAGE_API
from fixbn_flwr.server.own_start import has_own_start
from fixbn_flwr.server.round_steps import RoundSteps


class FixBN(RoundSteps):
    """FixBN's two stages and its momentum, around a strategy that does the rest.

    Examples:
        >>> from flwr.serverapp.strategy import FedAvg
        >>> strategy = FixBN(FedAvg(fraction_train=0.5), freeze_after=50)
        >>> strategy.phase
        <Phase.EXPLORATION: 'exploration'>

    In a ServerApp, ``strategy.start(grid=grid, initial_arrays=arrays, num_rounds=100)`` runs it.

    Args:
        strategy: Any ``flwr.serverapp.strategy.Strategy`` that averages arrays by name. A wrapper
            for differential privacy goes inside FixBN, around its own strategy.
        freeze_after: T*, the last round of exploration. An int is a number of rounds, a float in
            (0, 1] a share of ``num_rounds``, 1.0 never freezes (plain BN). "auto" decides during
            the run when to freeze, or never to, if clients return weights and not updates; see
            `docs/when-to-freeze.md`.
        momentum: The clients' momentum buffers at the start of a local training: "reset" (zero),
            "local" (each client's own, the paper's proposal, the default) or "global" (averaged,
            which doubles the payload).
        statistics: "mean" (the default) averages means and variances, as the paper does. "pooled"
            adds the spread between the clients' means to the variance.
        learning_rate_factor: Clients multiply every learning rate by it in calibration (default:
            1.0). A rate that works with mini-batch statistics can be far too large for frozen ones.
            "auto" is 0.1, or 1.0 if the clients' updates are much smaller than they were, as after
            a schedule has lowered the rate.
        guard: Whether a run that falls apart in the first rounds of calibration goes back to the
            end of round T* and tries again with 0.3 times the rate, at most three times, and then
            goes on without freezing. Default: True.
        compare_gradients_every: Every how many rounds of exploration clients compare the gradient
            under their batch's statistics with that under the global ones, where their code calls
            ``local.compare_gradients``. Default: 0, never.
        strict: Raise, instead of warn, when a client returns frozen statistics changed.
        max_extra_bytes: How many bytes of metrics, config records and other arrays a reply may
            hold besides the model. Default: as many as the model has, and a mebibyte.

    Attributes:
        checkpoints: The rounds after which the run can be resumed. The writer of checkpoints sets
            it, so that clients with momentum in files keep what they need to roll back.

    Raises:
        ConfigError: If an argument cannot work, or the strategy cannot be wrapped: one for boosted
            trees, a wrapper around a defending strategy, or a defending strategy with "pooled".
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        freeze_after: FreezeAfter,
        momentum: MomentumMode = "local",
        statistics: StatisticsAverage = "mean",
        learning_rate_factor: LearningRateFactor = 1.0,
        guard: bool = True,
        compare_gradients_every: int = 0,
        strict: bool = False,
        max_extra_bytes: int | None = None,
    ) -> None:
        layers = list(layers_of(strategy, Strategy))
        if not layers or any(isinstance(layer, FixBN) for layer in layers):
            raise ConfigError(
                f"FixBN got {type(strategy).__name__} to wrap: give it a strategy of "
                "flwr.serverapp.strategy, such as FedAvg(), that is not FixBN itself. For a "
                "strategy of flwr.server.strategy use fixbn_flwr.legacy.FixBN."
            )
        state = ServerState(
            freeze_after, momentum, statistics, learning_rate_factor, guard, compare_gradients_every
        )
        inner = examine(strategy, statistics, MESSAGE_API)
        super().__init__(strategy, inner, state, strict=strict, max_extra_bytes=max_extra_bytes)
        self._stopping = False

    @property
    def phase(self) -> Phase:
        """The phase of the current round."""
        return self._state.phase

    @property
    def freeze_round(self) -> int | None:
        """T*. None while it is not decided; the number of rounds or more if nothing is frozen."""
        return self._state.switch.freeze_round

    @property
    def freeze_reason(self) -> str:
        """Why T* is what it is, if the run decided it; else empty."""
        return self._state.switch.reason

    @property
    def advice(self) -> str:
        """What freezing is likely to do here, with ``freeze_after=1.0``; else empty."""
        return self._state.switch.advice

    @property
    def learning_rate_factor(self) -> float:
        """What clients multiply their learning rates by in the current round."""
        return self._state.factor

    @property
    def signals(self) -> Signals | None:
        """How far the clients are apart, in the last round; None without a usable reply."""
        return self._state.last_signals

    @property
    def frozen_statistics(self) -> dict[str, Array] | None:
        """S*, numpy arrays by name, from round T* + 1 on; None before."""
        return self._state.frozen_statistics

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        first_round: int = 1,
    ) -> Result:
        """Run rounds ``first_round`` to ``num_rounds``; see ``Strategy.start`` for the rest.

        If the inner strategy has its own ``start()``, that runs, and counts its rounds from 1.

        Args:
            first_round: The first round to run. After 1, the run resumes from a checkpoint:
                ``initial_arrays`` are then the whole model at the end of the round before (beyond
                T* its statistics are the frozen ones), and ``restore`` has been called.

        Returns:
            The run's result. Its ``arrays`` are the whole model, with statistics and counters.

        Raises:
            ConfigError: If ``first_round`` is not one of the rounds.
            NoStatisticsError: If statistics are to be frozen and ``initial_arrays`` has none.
            RoundsFailedError: If the first round, or several in a row, had no usable reply.
            StatisticsMovedError: With ``strict``, if a client changed the frozen statistics.
        """
        check_first_round(first_round, num_rounds)
        done = first_round - 1
        self._begin_run(grid.run.run_id, num_rounds, done, list(initial_arrays))
        self._stopping = False
        own = self.strategy if has_own_start(self.strategy) else None
        return LaterRounds(self, done, lambda: self._stopping, own).start(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )

    def stop(self) -> None:
        """End the run after the current round; ``start`` returns the result so far.

        Call it in ``evaluate_fn``, for example when the model no longer improves. It leaves an own
        ``start()`` of the inner strategy by an exception.
        """
        self._stopping = True

    def __getattr__(self, name: str) -> Any:
        return inner_attribute(self, name)

    def state(self) -> dict[str, Any]:
        """Return what is needed, beside the model, to resume after the last round.

        Call it in ``evaluate_fn``. Arrays in it are not copied. The inner strategy's part is what
        has changed in its attributes. See :mod:`fixbn_flwr.persistence.checkpoints`.
        """
        return self._resumption.state(self._state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned; the next ``start``, with its ``first_round``, uses it."""
        self._resumption.restore(state)

    def summary(self) -> None:
        """Log the method's options, then the inner strategy's."""
        state = self._state
        logger.info(
            "\t├──> FixBN: freeze_after %s | momentum %s | statistics %s | learning rate x %s",
            state.freeze_after, state.momentum, state.statistics, state.learning_rate_factor,
        )  # fmt: skip
        self.strategy.summary()
