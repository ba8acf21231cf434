"""FixBN around any strategy of Flower's older generation (``flwr.server.strategy``).

Zhong, Chen, Chao, "Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530.

The rules are those of ``fixbn_flwr.FixBN``; only the messages differ. Arrays travel without names,
so the user gives them, and averaged momentum travels as one safetensors blob. The inner strategy
does not see counters either: Flower's average would set every array of integers to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flwr.common import Parameters
from flwr.server import ClientManager
from flwr.server.strategy import Strategy

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.legacy.global_model import checked_names
from fixbn_flwr.legacy.inner_strategy import OLDER_GENERATION, check_no_client_clips
from fixbn_flwr.legacy.round_steps import RoundSteps
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.method.options import StatisticsAverage
from fixbn_flwr.method.round_config import MomentumMode
from fixbn_flwr.method.schedule import FreezeAfter, Phase
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.method.signals import Signals
from fixbn_flwr.method.switch import LearningRateFactor
from fixbn_flwr.server.inner_strategy import examine, inner_attribute, layers_of


class FixBN(RoundSteps):
    """FixBN's two stages and its momentum, around an older strategy that does the rest.

    Examples:
        >>> from flwr.server.strategy import FedAvg
        >>> strategy = FixBN(
        ...     FedAvg(fraction_fit=0.5),
        ...     freeze_after=0.5,
        ...     parameter_names=["0.weight", "1.running_mean", "1.running_var"],
        ...     num_rounds=100,
        ... )
        >>> strategy.phase
        <Phase.EXPLORATION: 'exploration'>

    In a ``server_fn``, return ``ServerAppComponents(strategy=strategy, config=...)``.

    Args:
        strategy: Any ``flwr.server.strategy.Strategy`` that averages arrays. Its copy of the
            initial model is reduced to parameters.
        freeze_after: T*, the last round of exploration. An int is a number of rounds, a float in
            (0, 1] a share of ``num_rounds``. 1.0 never freezes, which is plain BN. "auto" decides
            during the run.
        parameter_names: The names of the arrays in the order in which clients send them,
            ``list(model.state_dict())``.
        num_rounds: The number of rounds given to ``ServerConfig``, which strategies cannot see.
        momentum: See ``fixbn_flwr.FixBN``. Default: "local".
        statistics: See ``fixbn_flwr.FixBN``. Default: "mean".
        learning_rate_factor: See ``fixbn_flwr.FixBN``. Default: 1.0.
        guard: See ``fixbn_flwr.FixBN``. Default: True.
        compare_gradients_every: See ``fixbn_flwr.FixBN``. Default: 0, never.
        strict: See ``fixbn_flwr.FixBN``. Default: False.
        max_extra_bytes: See ``fixbn_flwr.FixBN``. Default: the model's bytes and a mebibyte.

    Raises:
        ConfigError: If an argument cannot work, or the strategy cannot be wrapped.
        NoStatisticsError: If statistics are to be frozen and no name is that of a statistic.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        freeze_after: FreezeAfter,
        parameter_names: Sequence[str],
        num_rounds: int,
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
                f"fixbn_flwr.legacy.FixBN got {type(strategy).__name__} to wrap: give it a "
                "strategy of flwr.server.strategy, such as FedAvg(), that is not FixBN itself. For "
                "a strategy of the Message API (flwr.serverapp.strategy) use fixbn_flwr.FixBN."
            )
        if isinstance(num_rounds, bool) or not isinstance(num_rounds, int) or num_rounds < 1:
            raise ConfigError(
                f"num_rounds={num_rounds!r} must be a whole number of at least 1, the one that "
                "ServerConfig(num_rounds=...) gets."
            )
        check_no_client_clips(layers)
        super().__init__(
            strategy,
            examine(strategy, statistics, OLDER_GENERATION),
            ServerState(
                freeze_after,
                momentum,
                statistics,
                learning_rate_factor,
                guard,
                compare_gradients_every,
            ),
            checked_names(parameter_names),
            num_rounds,
            strict=strict,
            max_extra_bytes=max_extra_bytes,
        )

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
    def signals(self) -> Signals | None:
        """How far the clients are apart, in the last round; None without a usable reply."""
        return self._state.last_signals

    @property
    def frozen_statistics(self) -> dict[str, Array] | None:
        """S*, numpy arrays by name, from round T* + 1 on; None before."""
        return self._state.frozen_statistics

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Begin a run; return the whole initial model, or None to request it from a client."""
        if self._has_begun:  # else it is as new, and has logged its warnings
            self._begin_run()
        self._inner.warn_of_uncovered(global_momentum=self._state.averages_momentum)
        initial = self.strategy.initialize_parameters(client_manager)
        if initial is None or self._initial is None or len(initial.tensors) == len(self._names):
            return initial
        return self._initial  # whole, where the strategy has only the parameters left

    def stop(self) -> None:
        """Train no more after the current round; Flower's remaining rounds are empty."""
        self._stopping = True

    def __getattr__(self, name: str) -> Any:
        return inner_attribute(self, name)
