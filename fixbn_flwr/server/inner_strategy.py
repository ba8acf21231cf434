"""The strategy inside FixBN: what FixBN must know of it, and which strategies it refuses.

Most strategies need nothing: they get the parameters and work as always. Strategies that defend
against hostile clients must also see the statistics. Those for differential privacy do not cover
the statistics. Strategies for boosted trees have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.common import MetricRecord, RecordDict

from fixbn_flwr.errors import ConfigError, ReplyError
from fixbn_flwr.flower_compat import warn_if_untested
from fixbn_flwr.log import logger
from fixbn_flwr.method.round_config import PARAMETERS_ONLY_MARK
from fixbn_flwr.method.server_rules import PARAMETERS_ONLY
from fixbn_flwr.server.reply_limits import shown


@dataclass(frozen=True)
class StrategyKinds:
    """The strategies of one generation of Flower that FixBN treats differently.

    Attributes:
        base: The class of all strategies of this generation.
        defending: Those that select clients or trim values.
        without_model: Those that do not average a PyTorch model's arrays.
        private: Those that add noise, on the server or with the clients' help.
        clipping_mods: Those whose clients clip, and the mod that does it.
        loss_keys: Those that weight clients by a loss, and the attribute that names its metric.
    """

    base: type
    defending: tuple[type, ...]
    without_model: tuple[type, ...]
    private: tuple[type, ...]
    clipping_mods: Mapping[type, str] = field(default_factory=dict)
    loss_keys: Mapping[type, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InnerStrategy:
    """What FixBN must know of the strategy inside it.

    Attributes:
        layers: The strategy and those that it wraps in turn, from the outside in.
        weighted_by: The metric that clients are weighted by.
        arrays_key: The key of the model's record in its messages.
        config_key: The key of the config record in its messages.
        loss: The metric that it also weights clients by, or None.
        defends: Whether it must judge the statistics together with the parameters.
        private: The class name of a wrapper that clips and adds noise, or None. Such a wrapper
            does not cover the statistics.
        clipping_mod: The name of the mod with which its clients must clip, or None.
    """

    layers: Sequence[Any]
    weighted_by: str
    arrays_key: str
    config_key: str
    loss: str | None
    defends: bool
    private: str | None
    clipping_mod: str | None

    def check_reply(self, reply: RecordDict) -> None:
        """Check what this strategy needs in a reply beside the arrays and their weight.

        Raises:
            ReplyError: If a loss is needed and it is missing, negative or not finite: NaN in one
                reply would spoil all parameters. Or if clients must clip the parameters and the
                reply does not say that its statistics were left alone.
        """
        if self.clipping_mod and PARAMETERS_ONLY_MARK not in reply:
            raise ReplyError(
                f"it has no record {PARAMETERS_ONLY_MARK!r}, so {self.clipping_mod} may have "
                f"clipped its statistics too. {PARAMETERS_ONLY}"
            )
        metrics = next(iter(reply.metric_records.values()), MetricRecord())
        loss = metrics.get(self.loss) if self.loss else 0.0
        if not isinstance(loss, int | float) or not 0 <= loss < math.inf:
            raise ReplyError(
                f"its metric {self.loss!r} is {shown(loss)}, and QFedAvg weights clients by it: "
                "return the mean training loss, a finite number that is not negative."
            )

    def warn_of_uncovered(self, *, global_momentum: bool) -> None:
        """Log what differential privacy does not cover, if the strategy provides it."""
        if self.private:
            logger.warning(
                "%s clips and adds noise to parameters only. Its privacy guarantee does not cover "
                "statistics, counters%s: they are averaged as clients send them.",
                self.private, ", momentum buffers" if global_momentum else "",
            )  # fmt: skip


def layers_of(strategy: object, base: type) -> Iterator[Any]:
    """Yield a strategy, the strategy that it wraps, and so on inwards.

    Args:
        strategy: What the user gave.
        base: The class of all strategies of its generation. Any other object ends the sequence.
    """
    while isinstance(strategy, base):
        yield strategy
        strategy = getattr(strategy, "strategy", None)


def inner_attribute(fixbn: Any, name: str) -> Any:
    """Return a method or attribute of the strategy inside FixBN, as in ``set_save_path(...)``.

    Raises:
        AttributeError: If neither has it.
    """
    if name.startswith("_") or name == "strategy":
        raise AttributeError(name)
    try:
        return getattr(fixbn.strategy, name)
    except AttributeError as error:
        raise AttributeError(
            f"neither FixBN nor {type(fixbn.strategy).__name__} inside it (.strategy) has an "
            f"attribute {name!r}"
        ) from error


def examine(strategy: object, statistics: str, kinds: StrategyKinds) -> InnerStrategy:
    """Return what FixBN must know of a strategy.

    Args:
        strategy: A strategy of the generation that ``kinds`` describes.
        statistics: How statistics are averaged, "mean" or "pooled".
        kinds: The strategies of this generation that need special treatment.

    Raises:
        ConfigError: If FixBN cannot wrap this strategy, or not with these statistics.
    """
    warn_if_untested()
    layers = list(layers_of(strategy, kinds.base))
    innermost = layers[-1]
    if isinstance(innermost, kinds.without_model):
        raise ConfigError(
            f"FixBN got {type(innermost).__name__}, which does not average a PyTorch model's "
            "arrays: there are no statistics to freeze. Use the strategy without FixBN."
        )
    defends = isinstance(innermost, kinds.defending)
    private = [type(layer).__name__ for layer in layers if isinstance(layer, kinds.private)]
    if defends:
        _check_defending(type(innermost).__name__, private, statistics)
    mods = [
        mod
        for kind, mod in kinds.clipping_mods.items()
        if any(isinstance(layer, kind) for layer in layers)
    ]
    losses = [key for kind, key in kinds.loss_keys.items() if isinstance(innermost, kind)]
    return InnerStrategy(
        layers=layers,
        weighted_by=getattr(innermost, "weighted_by_key", "num-examples"),
        arrays_key=getattr(innermost, "arrayrecord_key", "arrays"),
        config_key=getattr(innermost, "configrecord_key", "config"),
        loss=getattr(innermost, losses[0]) if losses else None,
        defends=defends,
        private=private[0] if private else None,
        clipping_mod=mods[0] if mods else None,
    )


def _check_defending(name: str, private: Sequence[str], statistics: str) -> None:
    if private:
        raise ConfigError(
            f"FixBN got {private[0]} around {name}: a defending strategy must judge the statistics "
            f"too, and {private[0]} would clip or add noise to them. Use one of the two: "
            f"FixBN({name}(...)), or {private[0]} around FedAvg."
        )
    if statistics != "mean":
        raise ConfigError(
            f"statistics={statistics!r} does not work with {name}, which defends the statistics by "
            'its own selection, median or trimmed mean: use statistics="mean".'
        )
