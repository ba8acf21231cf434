"""What the older generation's FixBN must know of the strategy that it wraps, and change in it.

Strategies of ``flwr.server.strategy`` get the initial model when they are built, statistics and
all, and keep it: FedAdam steps from it, FedAvgM too. Here those copies are cut down to parameters,
because parameters are all that the strategy will see from then on; and the evaluation function of
the user's, which some strategies call themselves, gets the whole model back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.common import NDArrays, Parameters
from flwr.server.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    DPFedAvgAdaptive,
    DPFedAvgFixed,
    FedAvgAndroid,
    FedMedian,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    FedXgbNnAvg,
    Krum,
    Strategy,
)

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.legacy.global_model import PositionedModel
from fixbn_flwr.server.inner_strategy import check_defender, layers_of

_DEFENDERS = (Krum, Bulyan, FedMedian, FedTrimmedAvg)
_NO_MODEL = (FedXgbBagging, FedXgbCyclic, FedXgbNnAvg, FedAvgAndroid)
_CLIENTS_CLIP = (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DPFedAvgFixed,
    DPFedAvgAdaptive,
)
_PRIVATE = (
    DifferentialPrivacyServerSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
)

_TAKEN = "_taken_over_by_fixbn"


@dataclass(frozen=True)
class Wrapped:
    """What FixBN must know of a strategy.

    Attributes:
        defends: it must judge the statistics together with the parameters.
        private: the wrapper's name if it clips and adds noise, which leaves statistics uncovered.
    """

    defends: bool
    private: str | None


def examine(strategy: object, statistics: str) -> Wrapped:
    """Return what FixBN must know of a strategy.

    Args:
        strategy: what the user gave.
        statistics: how the statistics shall be averaged.

    Raises:
        ConfigError: FixBN cannot work around this strategy, or not with these statistics.
    """
    layers = list(layers_of(strategy, Strategy))
    if not layers:
        raise ConfigError(
            f"fixbn_flwr.legacy.FixBN got {type(strategy).__name__} to wrap: give it a strategy of "
            "flwr.server.strategy, such as FedAvg(), that is not FixBN itself. For a strategy of "
            "the Message API (flwr.serverapp.strategy) use fixbn_flwr.FixBN."
        )
    innermost, outermost = type(layers[-1]).__name__, type(strategy).__name__
    if isinstance(layers[-1], _NO_MODEL):
        raise ConfigError(
            f"FixBN got {innermost}, which does not average a PyTorch model's arrays: there are no "
            "statistics to freeze. Use the strategy without FixBN."
        )
    if any(isinstance(layer, _CLIENTS_CLIP) for layer in layers):
        raise ConfigError(
            f"FixBN got {outermost}, whose clients clip all arrays that they return: the older "
            "generation has no names to leave statistics and counters out of that. Clip on the "
            "server (DifferentialPrivacyServerSideFixedClipping), or use the Message API with "
            "parameters_only of fixbn_flwr."
        )
    defends = isinstance(layers[-1], _DEFENDERS)
    private = [type(layer).__name__ for layer in layers if isinstance(layer, _PRIVATE)]
    if defends:
        check_defender(layers, statistics)
    return Wrapped(defends, private[0] if private else None)


def take_over(
    strategy: Strategy, names: Sequence[str], whole_of: Callable[[NDArrays], NDArrays]
) -> Parameters | None:
    """Cut what a strategy keeps of the initial model down to parameters.

    Args:
        strategy: the strategy, changed in place, with those that it wraps.
        names: the names of a whole model's arrays.
        whole_of: makes parameters a whole model again.

    Returns:
        The whole initial model, None if the strategy was built without one.

    Raises:
        ConfigError: the initial model has another number of arrays, or the strategy has been taken
            over before.
    """
    whole: Parameters | None = None
    for layer in layers_of(strategy, Strategy):
        if vars(layer).setdefault(_TAKEN, False):
            raise ConfigError(
                f"this {type(layer).__name__} has been inside another FixBN, which left it without "
                "the statistics of its initial model: make a new one for every FixBN."
            )
        vars(layer)[_TAKEN] = True
        initial = getattr(layer, "initial_parameters", None)
        if isinstance(initial, Parameters):
            whole = initial
            model = PositionedModel(names, initial)
            vars(layer)["initial_parameters"] = model.shown
            if hasattr(layer, "current_weights"):  # FedAdam, FedAdagrad, FedYogi
                vars(layer)["current_weights"] = list(model.parameters.values())
        evaluate = getattr(layer, "evaluate_fn", None)
        if evaluate is not None:
            vars(layer)["evaluate_fn"] = _given_the_whole(evaluate, len(names), whole_of)
    return whole


def _given_the_whole(
    evaluate: Callable[..., Any], number: int, whole_of: Callable[[NDArrays], NDArrays]
) -> Callable[..., Any]:
    """Return the user's evaluation function such that it can be called with parameters only."""

    def evaluate_whole(server_round: int, arrays: NDArrays, config: dict[str, Any]) -> Any:
        whole = arrays if len(arrays) == number else whole_of(arrays)
        return evaluate(server_round, whole, config)

    return evaluate_whole
