"""FixBN around any Message API strategy.

Zhong, Chen, Chao, "Making Batch Normalization Great in Federated Deep Learning", arXiv 2303.06530.

The inner strategy samples clients and averages parameters. It does not see statistics and counters:
server optimizers, clipping and noise must not change them (FedAdam's defaults turn a variance of
0.03 into -0.02 in one round). Strategies that defend against hostile clients (Krum, FedMedian) are
the exception: their selection, median or trimming must apply to the statistics too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fixbn_flwr.array_records import record_of
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.log import logger
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.method.round_config import MOMENTUM, MomentumMode
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.method.server_rules import ServerState, StatisticsAverage
from fixbn_flwr.server.aggregation import aggregate
from fixbn_flwr.server.evaluation_checks import check_evaluation
from fixbn_flwr.server.failed_rounds import FailedRounds
from fixbn_flwr.server.global_model import GlobalModel, statistics_of
from fixbn_flwr.server.inner_strategy import MESSAGE_API, examine, layers_of
from fixbn_flwr.server.later_rounds import EvaluateFn, LaterRounds, check_first_round
from fixbn_flwr.server.reply_checks import check_reply
from fixbn_flwr.server.reply_collection import CheckedReply, RoundMessages
from fixbn_flwr.server.resumption import Resumption


class FixBN(Strategy):
    """FixBN's two stages and its momentum, around a strategy that does the rest.

    >>> from flwr.serverapp.strategy import FedAvg
    >>> strategy = FixBN(FedAvg(fraction_train=0.5), freeze_after=50)
    >>> strategy.phase
    <Phase.EXPLORATION: 'exploration'>

    In a ServerApp, ``strategy.start(grid=grid, initial_arrays=arrays, num_rounds=100)`` runs it.

    Args:
        strategy: Any ``flwr.serverapp.strategy.Strategy`` that averages arrays by name. A wrapper
            for differential privacy goes inside FixBN, around its own strategy.
        freeze_after: T*, the last round of exploration. An int is a number of rounds, a float in
            (0, 1] a share of ``num_rounds``, 1.0 never freezes (plain BN).
        momentum: The clients' momentum buffers at the start of a local training: "reset" (zero),
            "local" (each client's own, the paper's proposal, the default) or "global" (averaged,
            which doubles the payload).
        statistics: "mean" (the default) averages means and variances, as the paper does. "pooled"
            adds the spread between the clients' means to the variance.
        learning_rate_factor: Clients multiply every learning rate by it in calibration (default:
            1.0). A rate that works with mini-batch statistics can be far too large for frozen ones.
        strict: Raise, instead of warn, when a client returns frozen statistics changed.

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
        freeze_after: int | float,
        momentum: MomentumMode = "local",
        statistics: StatisticsAverage = "mean",
        learning_rate_factor: float = 1.0,
        strict: bool = False,
    ) -> None:
        layers = list(layers_of(strategy, Strategy))
        if not layers or any(isinstance(layer, FixBN) for layer in layers):
            raise ConfigError(
                f"FixBN got {type(strategy).__name__} to wrap: give it a strategy of "
                "flwr.serverapp.strategy, such as FedAvg(), that is not FixBN itself. For a "
                "strategy of flwr.server.strategy use fixbn_flwr.legacy.FixBN."
            )
        self.strategy = strategy
        self.strict = strict
        self.checkpoints: Sequence[int] = ()
        self._state = ServerState(freeze_after, momentum, statistics, learning_rate_factor)
        self._inner = examine(strategy, statistics, MESSAGE_API)
        self._model = GlobalModel(ArrayRecord())
        self._statistics: dict[str, Array] = {}  # as the last round left them
        self._messages = RoundMessages((), ())
        self._failed_rounds = FailedRounds()
        self._resumption = Resumption(layers)

    @property
    def phase(self) -> Phase:
        """The phase of the current round."""
        return self._state.phase

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
        self._state.start(num_rounds, list(initial_arrays))
        self._inner.warn_of_uncovered(global_momentum=self._state.averages_momentum)
        self._failed_rounds = FailedRounds(ever_succeeded=done > 0)
        self._statistics = {}
        self._resumption.begin(grid.run.run_id, done, self._state)
        result = LaterRounds(self, done).start(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )
        result.arrays = result.arrays or initial_arrays
        return result

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
            "\t├──> FixBN: freeze_after %s | momentum %s | statistics %s | learning rate x %g",
            state.freeze_after, state.momentum, state.statistics, state.learning_rate_factor,
        )  # fmt: skip
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages, with statistics and FixBN's instructions."""
        self._take(arrays)
        instructions = self._resumption.add_to(
            self._state.begin_round(server_round, self._model.rest), self.checkpoints
        )
        logger.info("FixBN: round %s is %s", server_round, instructions.phase)
        extended = ConfigRecord({**config, **instructions.as_config()})
        messages = list(
            self.strategy.configure_train(server_round, self._model.parameters, extended, grid)
        )
        self._model.put_into(messages)
        if self._state.global_momentum:
            momentum = record_of(self._state.global_momentum)
            for message in messages:
                message.content[MOMENTUM] = momentum
        self._messages = RoundMessages(messages, grid.get_node_ids())
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies; let the inner strategy average parameters, average statistics here."""
        selection = self._messages.select(server_round, replies, self._check_reply)
        usable, sampled = len(selection.usable), len(self._messages)
        whole, metrics, failure = None, None, None
        if usable:
            whole, metrics, failure = aggregate(
                server_round, selection, self._model, self._inner, self._state
            )
        if whole is not None:
            self._statistics = statistics_of(whole)
        if sampled:
            self._failed_rounds.count(
                server_round, usable, selection.dropped, failure=failure, phase=self.phase
            )
            counts = {"fixbn-clients": usable, "fixbn-dropped": sampled - usable}
            metrics = MetricRecord({**(metrics or {}), **counts})
        return whole, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the inner strategy's messages, with the whole model."""
        self._take(arrays)
        messages = list(
            self.strategy.configure_evaluate(server_round, self._model.parameters, config, grid)
        )
        self._model.put_into(messages)
        self._messages = RoundMessages(messages, grid.get_node_ids())
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the inner strategy average the usable evaluations."""
        selection = self._messages.select(server_round, replies, self._check_evaluation)
        accepted = [reply for reply, _ in selection.usable.values()]
        return self.strategy.aggregate_evaluate(server_round, accepted)

    def _check_reply(self, reply: Message) -> CheckedReply[RecordDict]:
        self._inner.check_reply(reply.content)
        checked = check_reply(
            reply.content,
            self._model.arrays,
            weighted_by=self._inner.weighted_by,
            with_momentum=self._state.averages_momentum,
        )
        client = reply.metadata.src_node_id
        self._state.check_unmoved(client, checked.update, strict=self.strict)
        return checked

    def _check_evaluation(self, reply: Message) -> CheckedReply[RecordDict]:
        return check_evaluation(
            reply.content, self._model.arrays, weighted_by=self._inner.weighted_by
        )

    def _take(self, arrays: ArrayRecord) -> None:
        """Split the global model, once for a round's evaluation and the next round's training."""
        if arrays is not self._model.record:
            self._model = GlobalModel(arrays)
            self._model.check_statistics(self._statistics)
