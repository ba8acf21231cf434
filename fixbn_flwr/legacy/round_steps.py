"""The steps of a round, around the inner strategy's, in the older generation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import safetensors.numpy
from flwr.common import EvaluateIns, EvaluateRes, FitIns, FitRes, NDArrays, Parameters, Scalar
from flwr.server import ClientManager
from flwr.server.strategy import Strategy

from fixbn_flwr.flower_compat import ClientProxy
from fixbn_flwr.legacy.aggregation import aggregate
from fixbn_flwr.legacy.global_model import PositionedModel
from fixbn_flwr.legacy.inner_strategy import take_over
from fixbn_flwr.legacy.model_view import PositionedView
from fixbn_flwr.legacy.replies import check_evaluate, check_fit, select_results
from fixbn_flwr.legacy.whole_models import show_whole_models
from fixbn_flwr.log import logger
from fixbn_flwr.method.round_config import MOMENTUM_BLOB
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.server.dropped_replies import DroppedReplyLog
from fixbn_flwr.server.failed_rounds import FailedAggregation, FailedRounds, has_diverged
from fixbn_flwr.server.inner_strategy import InnerStrategy
from fixbn_flwr.server.reply_collection import CheckedReply
from fixbn_flwr.server.return_point import ReturnPoint


class RoundSteps(Strategy):
    """A strategy's methods of a round, with FixBN's rules around an inner strategy's methods.

    Args:
        strategy: The inner strategy. Its copy of the initial model is reduced to parameters.
        inner: What is known of it.
        state: FixBN's rules.
        names: The names of the model's arrays, in their order.
        num_rounds: The number of rounds.
        strict: Raise, instead of warn, when a client returns frozen statistics changed.
        max_extra_bytes: See ``fixbn_flwr.FixBN``.
    """

    def __init__(
        self,
        strategy: Strategy,
        inner: InnerStrategy,
        state: ServerState,
        names: Sequence[str],
        num_rounds: int,
        *,
        strict: bool,
        max_extra_bytes: int | None,
    ) -> None:
        self.strategy = strategy
        self.strict = strict
        self._inner = inner
        self._state = state
        self._names = names
        self._num_rounds = num_rounds
        self._max_extra_bytes = max_extra_bytes
        self._view = PositionedView(state, defends=inner.defends)
        self._initial = take_over(strategy, names, self._whole)
        show_whole_models(inner.layers, self._view)
        self._return_point: ReturnPoint[Parameters] = ReturnPoint(inner.layers)
        self._begin_run()

    def _begin_run(self) -> None:
        """Forget an earlier run."""
        self._state.start(self._num_rounds, self._names)
        self._return_point.restore(None)
        self._failed_rounds = FailedRounds()
        self._dropped_log = DroppedReplyLog()
        self._stopping = False
        self._sampled = 0
        self._unanswered: int | None = None
        self._has_begun = False

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
        self._has_begun = True
        if self._stopping:
            self._sampled = 0
            return []
        if server_round == self._num_rounds + 1:
            logger.warning(
                "round %s comes after num_rounds=%s: give FixBN the number that ServerConfig gets. "
                "A share of the rounds (freeze_after=%s) depends on it.",
                server_round, self._num_rounds, self._state.freeze_after,
            )  # fmt: skip
        model = self._take(parameters)
        instructions = self._state.begin_round(server_round, model.rest)
        self._return_point.keep(server_round, parameters, self._state)
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
        self._unanswered = None

        def check(client: str, result: FitRes) -> CheckedReply[FitRes]:
            checked = check_fit(
                result,
                self._view.current.arrays,
                with_momentum=self._state.averages_momentum,
                max_extra_bytes=self._max_extra_bytes,
                note=partial(self._dropped_log.note, client),
            )
            self._state.check_unmoved(client, checked.update, strict=self.strict)
            return checked

        selection, accepted, rejected = select_results(
            server_round, results, failures, check, self._dropped_log
        )
        usable = len(selection.usable)
        signals = self._state.observe(
            {client: checked.update for client, checked in selection.checked.items()},
            self._view.current.arrays,
        )
        whole, metrics, failure = None, dict[str, Scalar](), None
        if usable:
            whole, metrics, failure = aggregate(
                server_round, accepted, rejected, selection, self._view, self._inner, self._state
            )
        diverged = has_diverged(selection.dropped, failure, self._sampled)
        if self._state.switch.end_round(server_round, signals, diverged=diverged):
            whole = self._return_point.go_back(self._state)
        elif self._sampled:
            self._failed_rounds.count(
                server_round, usable, selection.dropped, failure=failure, phase=self._state.phase
            )
        counts = {"fixbn-clients": usable, "fixbn-dropped": self._sampled - usable}
        return whole, {**metrics, **counts, **self._state.metrics(signals)}

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Return the inner strategy's instructions, with whole models.

        A whole model of the user's code, such as the best one, keeps its own statistics.
        """
        if self._stopping:
            return []
        model = self._take(parameters)
        evaluations = self.strategy.configure_evaluate(server_round, model.shown, client_manager)
        return [
            (client, EvaluateIns(model.whole(evaluation.parameters), evaluation.config))
            for client, evaluation in evaluations
        ]

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Let the inner strategy average the usable evaluations."""
        sent, most = self._view.current.arrays, self._max_extra_bytes
        _, accepted, rejected = select_results(
            server_round,
            results,
            failures,
            lambda _, result: check_evaluate(result, sent, max_extra_bytes=most),
            self._dropped_log,
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
        if self._view.model is None or parameters is not self._view.model.record:
            self._view.model = PositionedModel(self._names, parameters)
        return self._view.model

    def _whole(self, parameters: NDArrays) -> NDArrays:
        """Return parameters with the statistics and counters of the current round."""
        return self._view.current.joined(parameters, self._view.current.rest)
