"""FixBN around any strategy of Flower's older generation (``flwr.server.strategy``).

    strategy = FixBN(
        FedAvg(fraction_fit=0.5, initial_parameters=ndarrays_to_parameters(arrays)),
        freeze_after=50,
        parameter_names=list(model.state_dict()),
        num_rounds=100,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=100))

Zhong, Chen, Chao, "Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530.

The rules are those of ``fixbn_flwr.FixBN``, kept in ``fixbn_flwr.method.server_rules`` for both.
What differs is the wire: arrays have places instead of names, so the names are given here, and
averaged momentum travels as one safetensors blob. Counters do not pass through the wrapped
strategy either, whose own average sets every array of whole numbers to zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import safetensors.numpy
from flwr.common import (
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    NDArrays,
    Parameters,
    Scalar,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import Strategy

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.legacy.global_model import PositionedModel
from fixbn_flwr.legacy.inner_strategy import examine, take_over
from fixbn_flwr.legacy.replies import form_of, read_result, sorted_out
from fixbn_flwr.method.averaging import Array, first_spoilt
from fixbn_flwr.method.round_config import MOMENTUM, Momentum
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.method.server_rules import ServerState, Update, logger
from fixbn_flwr.server.evaluation_checks import check_older_evaluation
from fixbn_flwr.server.failed_rounds import FailedRounds, made_infinity, made_no_model
from fixbn_flwr.server.inner_strategy import layers_of
from fixbn_flwr.server.inner_strategy_state import attributes_of, put_back


class FixBN(Strategy):
    """FixBN's two stages and its momentum, around an older strategy that does the rest.

    Args:
        strategy: any ``flwr.server.strategy.Strategy`` that averages arrays. It is taken over: what
            it keeps of the initial model is cut down to parameters.
        freeze_after: T*, the last round of exploration. An int is a number of rounds, a float in
            (0, 1] a share of ``num_rounds``; 1.0 never freezes, which is plain BN.
        parameter_names: the names of the arrays in the order in which clients send them,
            ``list(model.state_dict())``.
        num_rounds: the number of rounds that ``ServerConfig`` gets; strategies are not told it.
        momentum: clients' SGD momentum at the start of a local training: "reset" (zero), "local"
            (each client's own, the paper's proposal) or "global" (averaged; twice the payload).
        statistics: "mean" averages means and variances (the paper); "pooled" counts the spread
            between the clients' means into the variance as well.
        learning_rate_factor: clients multiply every learning rate by it in calibration.
        strict: raise, instead of warning, when a client sends back frozen statistics changed.

    Attributes:
        phase: the phase of the current round.
        frozen_statistics: S*, numpy arrays by name, from round T* + 1 on; None before.

    Raises:
        ConfigError: one of these values cannot work, or the strategy cannot be wrapped.
        NoStatisticsError: something is to be frozen, and no name is that of a statistic.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        freeze_after: int | float,
        parameter_names: Sequence[str],
        num_rounds: int,
        momentum: str = "local",
        statistics: str = "mean",
        learning_rate_factor: float = 1.0,
        strict: bool = False,
    ) -> None:
        self._layers = list(layers_of(strategy, Strategy))
        if any(isinstance(layer, FixBN) for layer in self._layers):
            raise ConfigError(
                "FixBN got a strategy that FixBN is around already: give it the strategy inside, "
                "once is what it takes."
            )
        if isinstance(num_rounds, bool) or not isinstance(num_rounds, int) or num_rounds < 1:
            raise ConfigError(
                f"num_rounds={num_rounds!r} must be the whole number of rounds, 1 or more, that "
                "ServerConfig(num_rounds=...) gets."
            )
        self._wrapped = examine(strategy, statistics)
        self._names = _checked_names(parameter_names)
        self._num_rounds = num_rounds
        self._state = ServerState(freeze_after, momentum, statistics, learning_rate_factor)
        self._state.start(num_rounds, self._names)
        self.strategy = strategy
        self.strict = strict
        self._model: PositionedModel | None = None
        self._asked = 0
        self._unanswered: int | None = None
        self._failures = FailedRounds()
        self._initial = take_over(strategy, self._names, self._whole)

    @property
    def phase(self) -> Phase:
        """The phase of the current round."""
        return self._state.phase

    @property
    def frozen_statistics(self) -> dict[str, Array] | None:
        """The frozen statistics by name, None in exploration."""
        return self._state.frozen_statistics

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters | None:
        """Begin a run; return the whole initial model, or None to have a client asked for it."""
        self._state.start(self._num_rounds, self._names)
        if self._wrapped.private:
            self._state.warn_of_uncovered(self._wrapped.private)
        self._failures = FailedRounds()
        self._unanswered = None
        initial = self.strategy.initialize_parameters(client_manager)
        if initial is None or self._initial is None or len(initial.tensors) == len(self._names):
            return initial
        return self._initial  # whole, where the strategy has only the parameters left

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Enter a round: the wrapped strategy's instructions, with statistics and FixBN's own.

        Raises:
            ConfigError: the global model has not as many arrays as there are names.
            RoundsFailedError: the round before ended without its replies, and it was the first or
                the third in a row.
        """
        self._check_that_replies_came()
        if server_round == self._num_rounds + 1:
            logger.warning(
                "round %s comes after num_rounds=%s: give FixBN the number that ServerConfig gets, "
                "a share of the rounds (freeze_after=%s) counts on it.",
                server_round, self._num_rounds, self._state.freeze_after,
            )  # fmt: skip
        model = self._take(parameters)
        asked = self._state.begin_round(server_round, model.rest)
        logger.info("FixBN: round %s is %s", server_round, asked.phase)
        config: dict[str, Scalar] = {**asked.as_config()}
        if self._state.global_momentum:
            config[MOMENTUM] = safetensors.numpy.save(self._state.global_momentum)
        instructions = self.strategy.configure_fit(server_round, model.shown, client_manager)
        self._asked = len(instructions)
        self._unanswered = server_round if instructions else None
        wholes = model.wholes(ins.parameters for _, ins in instructions)
        return [
            (client, FitIns(whole, {**ins.config, **config}))
            for (client, ins), whole in zip(instructions, wholes, strict=True)
        ]

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """End a round: check the replies, average parameters there and statistics here.

        Raises:
            RoundsFailedError: no usable reply in the first round, or in several in a row.
            StatisticsMovedError: with ``strict``, a client thawed the frozen statistics.
        """
        assert self._model is not None
        model, self._unanswered = self._model, None
        usable, problems, rejected = sorted_out(
            server_round,
            results,
            failures,
            read=lambda client, result: self._read(model, client, result),
            form=lambda result, read: (form_of(result.metrics), frozenset(read[1].momentum)),
        )
        metrics: dict[str, Scalar] = {}
        whole, failure = None, None
        before = attributes_of(self._layers)
        if usable:
            shown = [(client, seen) for client, _, (seen, _) in usable]
            parameters, metrics = self.strategy.aggregate_fit(server_round, shown, rejected)
            updates = [update for _, _, (_, update) in usable]
            whole, failure = self._new_model(model, parameters, updates)
            if parameters is not None and whole is None:
                put_back(self._layers, before)  # a momentum that is infinite would stay so
        if self._asked:
            self._failures.count(
                server_round, len(usable), problems, failure=failure, phase=self.phase
            )
        metrics = {
            **metrics,
            "fixbn-clients": len(usable),
            "fixbn-dropped": self._asked - len(usable),
        }
        return whole, metrics

    def _new_model(
        self, model: PositionedModel, parameters: Parameters | None, updates: list[Update]
    ) -> tuple[Parameters | None, str | None]:
        """Return the new global model, or why there is none."""
        if parameters is None:
            return None, made_no_model(self.strategy, len(updates))
        momentum = self._state.global_momentum
        arrays = parameters_to_ndarrays(parameters)
        number = len(model.parameters)
        defended: dict[str, Array] | None = None
        if self._wrapped.defends:
            names = self._state.to_defend(updates[0])
            defended = dict(zip(names, arrays[number:], strict=True))
        rest = self._state.end_round(updates, model.rest, defended=defended)
        whole = model.joined(arrays[:number], rest)
        spoilt = first_spoilt(dict(zip(model.arrays, whole, strict=True)), model.arrays)
        if spoilt is not None:
            self._state.global_momentum = momentum
            return None, made_infinity(self.strategy, spoilt)
        return ndarrays_to_parameters(whole), None

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Let the wrapped strategy ask for evaluations of the whole model."""
        model = self._take(parameters)
        instructions = self.strategy.configure_evaluate(server_round, model.shown, client_manager)
        wholes = model.wholes(ins.parameters for _, ins in instructions)
        return [
            (client, EvaluateIns(whole, ins.config))
            for (client, ins), whole in zip(instructions, wholes, strict=True)
        ]

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Let the wrapped strategy average the evaluations that can be averaged."""
        assert self._model is not None
        sent = self._model.arrays
        usable, _, rejected = sorted_out(
            server_round,
            results,
            failures,
            read=lambda _, result: check_older_evaluation(result, sent),
            form=lambda result, _: form_of(result.metrics),
        )
        replies = [(client, result) for client, result, _ in usable]
        return self.strategy.aggregate_evaluate(server_round, replies, rejected)

    def evaluate(
        self, server_round: int, parameters: Parameters
    ) -> tuple[float, dict[str, Scalar]] | None:
        """Let the wrapped strategy evaluate the whole model on the server.

        Raises:
            RoundsFailedError: as for ``configure_fit``.
        """
        self._check_that_replies_came()
        self._take(parameters)
        return self.strategy.evaluate(server_round, parameters)

    def _check_that_replies_came(self) -> None:
        if self._unanswered is not None:
            server_round, self._unanswered = self._unanswered, None
            self._failures.count(
                server_round, 0, [],
                failure="its replies never reached the strategy. Was it secure aggregation "
                "(SecAggPlusWorkflow)? FixBN cannot work with it, use DefaultWorkflow()",
            )  # fmt: skip

    def _take(self, parameters: Parameters) -> PositionedModel:
        """Take the global model apart, once: a round is evaluated with what the next one trains."""
        if self._model is None or parameters is not self._model.record:
            self._model = PositionedModel(self._names, parameters)
        return self._model

    def _whole(self, parameters: NDArrays) -> NDArrays:
        """Return parameters with the statistics and counters of the current round."""
        assert self._model is not None
        return self._model.joined(parameters, self._model.rest)

    def _read(
        self, model: PositionedModel, client: ClientProxy, result: FitRes
    ) -> tuple[FitRes, Update]:
        """Check a reply; return what the wrapped strategy may see of it, and what it may not."""
        with_momentum = self._state.momentum == Momentum.GLOBAL
        update, shown, metrics = read_result(result, model.arrays, with_momentum=with_momentum)
        self._state.check_unmoved(client.cid, update, strict=self.strict)
        if self._wrapped.defends:
            shown += self._state.to_defend(update).values()
        seen = FitRes(result.status, ndarrays_to_parameters(shown), result.num_examples, metrics)
        return seen, update


def _checked_names(names: Sequence[str]) -> list[str]:
    """Return the names as a list.

    Raises:
        ConfigError: they are not names of arrays, each once.
    """
    listed = [] if isinstance(names, str) else list(names)
    if not listed or not all(isinstance(n, str) for n in listed) or len({*listed}) < len(listed):
        raise ConfigError(
            f"parameter_names={names!r} must name each of the model's arrays once, in the order in "
            "which clients send them: give list(model.state_dict())."
        )
    return listed
