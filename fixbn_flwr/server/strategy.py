"""FixBN around any Message API strategy.

    strategy = FixBN(FedAvg(fraction_train=0.5), freeze_after=50)
    result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=100)

Zhong, Chen, Chao, "Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530.

The wrapped strategy samples clients and averages parameters, as it always does. Statistics and
counters are taken out of everything that goes into it and joined again to what comes out: a server
optimiser, clipping or noise must not touch them (FedAdam's defaults turn a variance of 0.03 into
-0.02 in one round). They are averaged in exploration and kept as they are in calibration.

A strategy that defends against hostile clients (Krum, MultiKrum, Bulyan, FedMedian, FedTrimmedAvg)
is the exception: its replies hold the statistics in exploration, and the averaged momentum always,
so that its own choice, median or trimming decides on them as it does on the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fixbn_flwr.array_records import arrays_of, record_of
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.averaging import Array, Kind, of_kind
from fixbn_flwr.method.round_config import MOMENTUM, Momentum
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.method.server_rules import ServerState, Update, logger
from fixbn_flwr.server.evaluation_checks import check_evaluation
from fixbn_flwr.server.failed_rounds import FailedRounds, made_infinity, made_no_model
from fixbn_flwr.server.global_model import GlobalModel
from fixbn_flwr.server.inner_strategy import examine, layers_of
from fixbn_flwr.server.inner_strategy_state import attributes_of, put_back
from fixbn_flwr.server.reply_checks import read_reply
from fixbn_flwr.server.reply_collection import Asked
from fixbn_flwr.server.resumption import Resumption


class FixBN(Strategy):
    """FixBN's two stages and its momentum, around a strategy that does the rest.

    Args:
        strategy: any ``flwr.serverapp.strategy.Strategy`` that averages arrays by name. A wrapper
            for differential privacy goes inside FixBN, around its own strategy.
        freeze_after: T*, the last round of exploration. An int is a number of rounds, a float in
            (0, 1] a share of ``num_rounds``; 1.0 never freezes, which is plain BN.
        momentum: clients' SGD momentum at the start of a local training: "reset" (zero), "local"
            (each client's own, the paper's proposal) or "global" (averaged; twice the payload).
        statistics: "mean" averages means and variances (the paper); "pooled" counts the spread
            between the clients' means into the variance as well.
        learning_rate_factor: clients multiply every learning rate by it in calibration. A rate that
            mini-batch statistics bear can be far too large for frozen ones; 0.1 is a safe choice.
        strict: raise, instead of warning, when a client sends back frozen statistics changed.

    Attributes:
        phase: the phase of the current round.
        frozen_statistics: S*, numpy arrays by name, from round T* + 1 on; None before.
        checkpoints: the rounds after which the run can be resumed, for whoever writes checkpoints
            to set: clients that keep momentum in files then keep what they need to go back.

    Raises:
        ConfigError: one of these values cannot work, or the strategy cannot be wrapped: one for
            boosted trees; a wrapper around one that defends; one that defends with "pooled".
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        freeze_after: int | float,
        momentum: str = "local",
        statistics: str = "mean",
        learning_rate_factor: float = 1.0,
        strict: bool = False,
    ) -> None:
        if not isinstance(strategy, Strategy) or any(
            isinstance(layer, FixBN) for layer in layers_of(strategy, Strategy)
        ):
            raise ConfigError(
                f"FixBN got {type(strategy).__name__} to wrap: give it a strategy of "
                "flwr.serverapp.strategy, such as FedAvg(), that is not FixBN itself. Strategies "
                "of flwr.server.strategy belong to Flower's older generation."
            )
        self.strategy = strategy
        self.strict = strict
        self._state = ServerState(freeze_after, momentum, statistics, learning_rate_factor)
        self._wrapped = examine(strategy, statistics)
        self._rounds_before = 0
        self._model = GlobalModel(ArrayRecord())
        self._left: dict[str, Array] = {}
        self._asked = Asked((), ())
        self._failures = FailedRounds()
        self._layers = list(layers_of(strategy, Strategy))
        self._resumption = Resumption(self._layers)
        self.checkpoints: Sequence[int] = ()

    @property
    def phase(self) -> Phase:
        """The phase of the current round."""
        return self._state.phase

    @property
    def frozen_statistics(self) -> dict[str, Array] | None:
        """The frozen statistics by name, None in exploration."""
        return self._state.frozen_statistics

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        first_round: int = 1,
    ) -> Result:
        """Run rounds ``first_round`` to ``num_rounds``; see ``Strategy.start`` for the rest.

        Args:
            first_round: the first round to run. With a later one than 1 a run goes on where a
                checkpoint ended: ``initial_arrays`` are then the whole model at the end of the
                round before, beyond T* its statistics are the frozen ones, and ``restore`` has
                been called.

        Returns:
            The run's result; ``arrays`` is the whole model, statistics and counters included.

        Raises:
            ConfigError: ``first_round`` is not one of the rounds.
            NoStatisticsError: something is to be frozen and ``initial_arrays`` has no statistics.
            RoundsFailedError: no usable reply in the first round, or in several in a row.
            StatisticsMovedError: with ``strict``, a client thawed the frozen statistics.
        """
        if not 1 <= first_round <= max(num_rounds, 1):
            raise ConfigError(
                f"first_round={first_round} is not one of the rounds 1 to {num_rounds}: give the "
                "round after the last one that is done."
            )
        self._state.start(num_rounds, list(initial_arrays))
        if self._wrapped.private:
            self._state.warn_of_uncovered(self._wrapped.private)
        self._failures = FailedRounds(ever_succeeded=first_round > 1)
        self._rounds_before = first_round - 1
        self._left = {}
        self._resumption.begin(grid.run.run_id, self._rounds_before, self._state)

        def evaluate(round_of_this_start: int, arrays: ArrayRecord) -> MetricRecord | None:
            assert evaluate_fn is not None
            return evaluate_fn(self._rounds_before + round_of_this_start, arrays)

        try:
            # Flower's loop always counts from 1: it runs the rounds that are left, and every round
            # number that leaves this class, or enters its result, is a round of the whole run.
            result = super().start(
                grid,
                initial_arrays,
                num_rounds - self._rounds_before,
                timeout,
                train_config,
                evaluate_config,
                evaluate if evaluate_fn else None,
            )
        finally:
            offset, self._rounds_before = self._rounds_before, 0
        result.arrays = result.arrays or initial_arrays
        for metrics in (
            result.train_metrics_clientapp,
            result.evaluate_metrics_clientapp,
            result.evaluate_metrics_serverapp,
        ):
            counted = {offset + number: record for number, record in metrics.items()}
            metrics.clear()
            metrics.update(counted)
        return result

    def state(self) -> dict[str, Any]:
        """Return what is needed beside the model to go on after the last round that has ended.

        Numbers, texts and arrays, which are not copied; see :mod:`fixbn_flwr.persistence.checkpoints`. Call it
        in ``evaluate_fn``. What the wrapped strategy keeps is found by looking at its attributes.
        """
        return self._resumption.state(self._state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned; the next ``start``, with its ``first_round``, uses it."""
        self._resumption.restore(state)

    def summary(self) -> None:
        """Log the method's choices, then the wrapped strategy's."""
        state = self._state
        logger.info(
            "\t├──> FixBN: freeze_after %s | momentum %s | statistics %s | learning rate x %g",
            state.freeze_after, state.momentum, state.statistics, state.learning_rate_factor,
        )  # fmt: skip
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Enter a round: the wrapped strategy's messages, with statistics and instructions."""
        server_round += self._rounds_before
        self._take(arrays)
        asked = self._resumption.told(
            self._state.begin_round(server_round, self._model.rest), self.checkpoints
        )
        logger.info("FixBN: round %s is %s", server_round, asked.phase)
        extended = ConfigRecord({**config, **asked.as_config()})
        messages = list(
            self.strategy.configure_train(server_round, self._model.parameters, extended, grid)
        )
        self._model.put_into(messages)
        if self._state.global_momentum:
            momentum = record_of(self._state.global_momentum)
            for message in messages:
                message.content[MOMENTUM] = momentum
        self._asked = Asked(messages, grid.get_node_ids())
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """End a round: check the replies, average parameters there and statistics here."""
        server_round += self._rounds_before
        usable, problems = self._asked.sorted_out(server_round, replies, self._read)
        counts = {"fixbn-clients": len(usable), "fixbn-dropped": len(self._asked) - len(usable)}
        before = attributes_of(self._layers)
        parameters, metrics = self._aggregated(server_round, usable)
        whole, failure = None, None
        if usable:
            whole, failure = self._whole(parameters, [update for _, update in usable.values()])
        if parameters is not None and whole is None:
            put_back(self._layers, before)  # a momentum that is infinite would stay so
        if self._asked:
            self._failures.count(
                server_round, len(usable), problems, failure=failure, phase=self.phase
            )
        if whole is None:
            return None, MetricRecord({**(metrics or {}), **counts}) if self._asked else None
        return whole, MetricRecord({**(metrics or {}), **counts})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the wrapped strategy ask for evaluations of the whole model."""
        server_round += self._rounds_before
        self._take(arrays)
        messages = list(
            self.strategy.configure_evaluate(server_round, self._model.parameters, config, grid)
        )
        self._model.put_into(messages)
        self._asked = Asked(messages, grid.get_node_ids())
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the wrapped strategy average the evaluations that can be averaged."""
        server_round += self._rounds_before
        usable, _ = self._asked.sorted_out(server_round, replies, self._check_evaluation)
        return self.strategy.aggregate_evaluate(
            server_round, [reply for reply, _ in usable.values()]
        )

    def _aggregated(
        self, server_round: int, usable: dict[int, tuple[Message, Update]]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the wrapped strategy average the replies, as far as it may see them."""
        if not usable:
            return None, None
        if self._wrapped.defends:
            for reply, update in usable.values():
                ((key, parameters),) = reply.content.array_records.items()
                beside = record_of(self._state.to_defend(update))
                reply.content[str(key)] = ArrayRecord({**parameters, **beside})
        accepted = [reply for reply, _ in usable.values()]
        return self.strategy.aggregate_train(server_round, accepted)

    def _whole(
        self, parameters: ArrayRecord | None, updates: list[Update]
    ) -> tuple[ArrayRecord | None, str | None]:
        """Return the new global model, or why there is none."""
        if parameters is None:
            return None, made_no_model(self.strategy, len(updates))
        momentum = self._state.global_momentum
        rest = self._state.end_round(
            updates,
            self._model.rest,
            defended=self._beside(parameters) if self._wrapped.defends else None,
        )
        whole = self._model.joined(parameters, rest)
        if (name := self._model.first_spoilt(whole)) is not None:
            self._state.global_momentum = momentum
            return None, made_infinity(self.strategy, name)
        self._left = rest
        return whole, None

    def _beside(self, aggregated: ArrayRecord) -> dict[str, Array]:
        """Return what a strategy that defends made of all that is no parameter."""
        return {
            name: array
            for name, array in arrays_of(aggregated).items()
            if name not in self._model.parameters
        }

    def _take(self, arrays: ArrayRecord) -> None:
        """Take the global model apart, once: a round is evaluated with what the next one trains."""
        if arrays is self._model.record:
            return
        self._model = GlobalModel(arrays)
        for name, left in of_kind(self._left, Kind.STATISTIC).items():
            if not np.array_equal(self._model.rest[name], left):
                raise ConfigError(
                    f"statistic {name!r} is not what FixBN made it in the last round: a strategy "
                    "around FixBN, such as one for differential privacy, has changed it. Put FixBN "
                    "outermost: FixBN(DifferentialPrivacy...(FedAvg(), ...), freeze_after=...)."
                )

    def _read(self, reply: Message) -> Update:
        """Check a reply and leave in it what the wrapped strategy may see."""
        self._wrapped.check(reply.content)
        update, reply.content = read_reply(
            reply,
            self._model.arrays,
            weighted_by=self._wrapped.weighted_by,
            with_momentum=self._state.momentum == Momentum.GLOBAL,
        )
        self._state.check_unmoved(reply.metadata.src_node_id, update, strict=self.strict)
        return update

    def _check_evaluation(self, reply: Message) -> None:
        check_evaluation(reply.content, self._model.arrays, self._wrapped.weighted_by)
