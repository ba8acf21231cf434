"""What FixBN must know of the strategy that it wraps, and which strategies it refuses.

Most strategies need nothing: they get the parameters and do with them what they do. Those that
defend against hostile clients must see the statistics too; those for differential privacy leave the
statistics uncovered; boosted trees have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedMedian,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    MultiKrum,
    QFedAvg,
    Strategy,
)

from fixbn_flwr.client.parameters_only import MARK
from fixbn_flwr.errors import ConfigError, ReplyError
from fixbn_flwr.method.server_rules import PARAMETERS_ONLY, logger
from fixbn_flwr.server.reply_limits import shown

_DEFENDERS = (MultiKrum, Bulyan, FedMedian, FedTrimmedAvg)  # Krum is a MultiKrum
_TREES = (FedXgbBagging, FedXgbCyclic)
_CLIENTS_CLIP = {
    DifferentialPrivacyClientSideFixedClipping: "fixedclipping_mod",
    DifferentialPrivacyClientSideAdaptiveClipping: "adaptiveclipping_mod",
}
_PRIVATE = (
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    *_CLIENTS_CLIP,
)


@dataclass(frozen=True)
class Wrapped:
    """What FixBN must know of a strategy.

    Attributes:
        weighted_by: the metric that clients are weighted by.
        loss: the metric that it computes with beside that one, None if there is none.
        defends: it must judge the statistics together with the parameters.
        private: the wrapper's name if it clips and adds noise, which leaves statistics uncovered.
        clipping_mod: the name of the mod with which its clients have to clip, None if they do not.
    """

    weighted_by: str
    loss: str | None
    defends: bool
    private: str | None
    clipping_mod: str | None

    def check(self, reply: RecordDict) -> None:
        """Check what this strategy needs in a reply beside the arrays and their weight.

        Raises:
            ReplyError: a loss is needed and is missing or no number from zero up: NaN in one reply
                would spoil all parameters. Or the parameters have to be clipped by the client, and
                the reply does not say that its statistics were left out of that.
        """
        if self.clipping_mod and MARK not in reply:
            raise ReplyError(
                f"nothing in it says that {self.clipping_mod} clipped its parameters only (a "
                f"record {MARK!r}). {PARAMETERS_ONLY}"
            )
        metrics = next(iter(reply.metric_records.values()), MetricRecord())
        loss = metrics.get(self.loss) if self.loss else 0.0
        if not isinstance(loss, int | float) or not 0 <= loss < math.inf:
            raise ReplyError(
                f"its metric {self.loss!r} is {shown(loss)}, and QFedAvg weights clients by it: "
                "return the mean training loss, a number that is not below zero."
            )


def layers_of(strategy: object, base: type) -> Iterator[Any]:
    """Yield a strategy, the one that it wraps, as Flower's wrappers do, and so on inwards.

    Args:
        strategy: what the user gave.
        base: the class of all strategies of its generation; what is none of them ends the row.
    """
    while isinstance(strategy, base):
        yield strategy
        strategy = getattr(strategy, "strategy", None)


def check_defender(layers: Sequence[object], statistics: str) -> None:
    """Refuse what would undo the defence of the innermost of these strategies.

    Raises:
        ConfigError: there is another around it, or the statistics shall not be its own average.
    """
    name, outermost = type(layers[-1]).__name__, type(layers[0]).__name__
    if len(layers) > 1:
        raise ConfigError(
            f"FixBN got {outermost} around {name}: a strategy that defends must judge the "
            f"statistics too, and what {outermost} does to parameters (clipping, noise) it would "
            f"do to them. Use one of the two: FixBN({name}(...)), or {outermost} around FedAvg."
        )
    if statistics != "mean":
        raise ConfigError(
            f"statistics={statistics!r} cannot be had with {name}, which defends the statistics by "
            'its own choice, median or trimmed mean of them: use statistics="mean".'
        )


def examine(strategy: Strategy, statistics: str) -> Wrapped:
    """Return what FixBN must know of a strategy, given how the statistics shall be averaged.

    Raises:
        ConfigError: FixBN cannot work around this strategy, or not with these statistics.
    """
    layers = list(layers_of(strategy, Strategy))
    innermost = layers[-1]
    name = type(innermost).__name__
    defends = isinstance(innermost, _DEFENDERS)
    if isinstance(innermost, _TREES):
        raise ConfigError(
            f"FixBN got {name}, which grows boosted trees: they have no batch normalisation and no "
            "statistics to freeze. Use the strategy without FixBN."
        )
    if defends:
        check_defender(layers, statistics)
    for layer in layers:
        if type(layer).start is not Strategy.start:
            logger.warning(
                "%s has a start() of its own, which FixBN does not call: what it does there "
                "(saving, logging) belongs into the evaluate_fn that start() gets.",
                type(layer).__name__,
            )
    private = [type(layer).__name__ for layer in layers if isinstance(layer, _PRIVATE)]
    mods = [mod for kind, mod in _CLIENTS_CLIP.items() if any(isinstance(x, kind) for x in layers)]
    return Wrapped(
        weighted_by=getattr(innermost, "weighted_by_key", "num-examples"),
        loss=innermost.train_loss_key if isinstance(innermost, QFedAvg) else None,
        defends=defends,
        private=private[0] if private else None,
        clipping_mod=mods[0] if mods else None,
    )
