"""FixBN around any strategy of Flower's older generation (``flwr.server.strategy``).

Zhong, Chen, Chao, "Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530.

The rules are those of ``fixbn_flwr.FixBN``; only the messages differ. Arrays travel without names,
so the user gives them, and averaged momentum travels as one safetensors blob. The inner strategy
does not see counters either: Flower's average would set every array of integers to zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import safetensors.numpy
from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, NDArrays, Parameters, Scalar
from flwr.server import ClientManager
from flwr.server.strategy import Strategy

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.flower_compat import ClientProxy
from fixbn_flwr.legacy.aggregation import aggregate
from fixbn_flwr.legacy.global_model import PositionedModel, checked_names
from fixbn_flwr.legacy.inner_strategy import OLDER_GENERATION, check_no_client_clips, take_over
from fixbn_flwr.legacy.replies import check_evaluate, check_fit, select_results
from fixbn_flwr.log import logger
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.method.round_config import MOMENTUM_BLOB, MomentumMode
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.method.server_rules import ServerState, StatisticsAverage
from fixbn_flwr.server.failed_rounds import FailedAggregation, FailedRounds
from fixbn_flwr.server.inner_strategy import examine, layers_of
from fixbn_flwr.server.reply_collection import CheckedReply


class FixBN(Strategy):
    """FixBN's two stages and its momentum, around an older strategy that does the rest.

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
            (0, 1] a share of ``num_rounds``. 1.0 never freezes, which is plain BN.
        parameter_names: The names of the arrays in the order in which clients send them,
            ``list(model.state_dict())``.
        num_rounds: The number of rounds given to ``ServerConfig``, which strategies cannot see.
        momentum: See ``fixbn_flwr.FixBN``. Default: "local".
        statistics: See ``fixbn_flwr.FixBN``. Default: "mean".
        learning_rate_factor: See ``fixbn_flwr.FixBN``. Default: 1.0.
        strict: See ``fixbn_flwr.FixBN``. Default: False.

    Raises:
        ConfigError: If an argument cannot work, or the strategy cannot be wrapped.
        NoStatisticsError: If statistics are to be frozen and no name is that of a statistic.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        freeze_after: int | float,
        parameter_names: Sequence[str],
        num_rounds: int,
        momentum: MomentumMode = "local",
        statistics: StatisticsAverage = "mean",
        learning_rate_factor: float = 1.0,
        strict: bool = False,
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
        self._inner = examine(strategy, statistics, OLDER_GENERATION)
        self._names = checked_names(parameter_names)
        self._num_rounds = num_rounds
        self._state = ServerState(freeze_after, momentum, statistics, learning_rate_factor)
        self._state.start(num_rounds, self._names)
        self.strategy = strategy
        self.strict = strict
        self._model: PositionedModel | None = None
        self._sampled = 0
        self._unanswered: int | None = None
        self._failed_rounds = FailedRounds()
        self._initial = take_over(strategy, self._names, self._whole)

    @property
    def phase(self) -> Phase:
        """The phase of the current round."""
        return self._state.phase

    @property
    def frozen_statistics(self) -> dict[str, Array] | None:
        """S*, numpy arrays by name, from round T* + 1 on; None before."""
        return self._state.frozen_statistics

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Begin a run; return the whole initial model, or None to request it from a client."""
        self._state.start(self._num_rounds, self._names)
        self._inner.warn_of_uncovered(global_momentum=self._state.averages_momentum)
        self._failed_rounds = FailedRounds()
        self._unanswered = None
        initial = self.strategy.initialize_parameters(client_manager)
        if initial is None or self._initial is None or len(initial.tensors) == len(self._names):
            return initial
        return self._initial  # whole, where the strategy has only the parameters left

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Return the inner strategy's instructions, with statistics and FixBN's config.

        Raises:
            ConfigError: If the numbers of the global model's arrays and of names differ.
            RoundsFailedError: If the round before ended without its replies, and it was the first
                or the third in a row.
        """
        self._check_replies_came()
        if server_round == self._num_rounds + 1:
            logger.warning(
                "round %s comes after num_rounds=%s: give FixBN the number that ServerConfig gets. "
                "A share of the rounds (freeze_after=%s) depends on it.",
                server_round, self._num_rounds, self._state.freeze_after,
            )  # fmt: skip
        model = self._take(parameters)
        instructions = self._state.begin_round(server_round, model.rest)
        logger.info("FixBN: round %s is %s", server_round, instructions.phase)
        config: dict[str, Scalar] = {**instructions.as_config()}
        if self._state.global_momentum:
            config[MOMENTUM_BLOB] = safetensors.numpy.save(self._state.global_momentum)
        fits = self.strategy.configure_fit(server_round, model.shown, client_manager)
        self._sampled = len(fits)
        self._unanswered = server_round if fits else None
        wholes = model.wholes(fit.parameters for _, fit in fits)
        return [
            (client, FitIns(whole, {**fit.config, **config}))
            for (client, fit), whole in zip(fits, wholes, strict=True)
        ]

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Check the replies; let the inner strategy average parameters, average statistics here.

        Raises:
            RoundsFailedError: If the first round, or several in a row, had no usable reply.
            StatisticsMovedError: With ``strict``, if a client changed the frozen statistics.
        """
        assert self._model is not None
        model, self._unanswered = self._model, None

        def check(client: str, result: FitRes) -> CheckedReply[FitRes]:
            checked = check_fit(result, model.arrays, with_momentum=self._state.averages_momentum)
            self._state.check_unmoved(client, checked.update, strict=self.strict)
            return checked

        selection, accepted, rejected = select_results(server_round, results, failures, check)
        usable = len(selection.usable)
        whole, metrics, failure = None, dict[str, Scalar](), None
        if usable:
            whole, metrics, failure = aggregate(
                server_round, accepted, rejected, selection.updates, model, self._inner, self._state
            )
        if self._sampled:
            self._failed_rounds.count(
                server_round, usable, selection.dropped, failure=failure, phase=self.phase
            )
        counts = {"fixbn-clients": usable, "fixbn-dropped": self._sampled - usable}
        return whole, {**metrics, **counts}

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Return the inner strategy's instructions, with the whole model."""
        model = self._take(parameters)
        evaluations = self.strategy.configure_evaluate(server_round, model.shown, client_manager)
        wholes = model.wholes(evaluation.parameters for _, evaluation in evaluations)
        return [
            (client, EvaluateIns(whole, evaluation.config))
            for (client, evaluation), whole in zip(evaluations, wholes, strict=True)
        ]

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Let the inner strategy average the usable evaluations."""
        assert self._model is not None
        sent = self._model.arrays
        _, accepted, rejected = select_results(
            server_round, results, failures, lambda _, result: check_evaluate(result, sent)
        )
        return self.strategy.aggregate_evaluate(server_round, accepted, rejected)

    def evaluate(
        self, server_round: int, parameters: Parameters
    ) -> tuple[float, dict[str, Scalar]] | None:
        """Let the inner strategy evaluate the whole model on the server.

        Raises:
            RoundsFailedError: As for ``configure_fit``.
        """
        self._check_replies_came()
        self._take(parameters)
        return self.strategy.evaluate(server_round, parameters)

    def _check_replies_came(self) -> None:
        if self._unanswered is not None:
            server_round, self._unanswered = self._unanswered, None
            failure = FailedAggregation(
                "its replies never reached the strategy. Secure aggregation (SecAggPlusWorkflow) "
                "does not work with FixBN: use DefaultWorkflow()"
            )
            self._failed_rounds.count(server_round, 0, [], failure=failure)

    def _take(self, parameters: Parameters) -> PositionedModel:
        """Split the global model, once for a round's evaluation and the next round's training."""
        if self._model is None or parameters is not self._model.record:
            self._model = PositionedModel(self._names, parameters)
        return self._model

    def _whole(self, parameters: NDArrays) -> NDArrays:
        """Return parameters with the statistics and counters of the current round."""
        assert self._model is not None
        return self._model.joined(parameters, self._model.rest)
