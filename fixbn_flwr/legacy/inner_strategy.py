"""The older strategy inside FixBN: what FixBN must know of it, and change in it.

Strategies of ``flwr.server.strategy`` get the initial model when they are built, with statistics,
and keep it: FedAdam and FedAvgM step from it. FixBN reduces those copies to parameters, because
the strategy sees nothing else from then on. The user's evaluation function, which some strategies
call themselves, still gets the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from fixbn_flwr.server.inner_strategy import StrategyKinds, layers_of

OLDER_GENERATION = StrategyKinds(
    base=Strategy,
    defending=(Krum, Bulyan, FedMedian, FedTrimmedAvg),
    without_model=(FedXgbBagging, FedXgbCyclic, FedXgbNnAvg, FedAvgAndroid),
    private=(
        DifferentialPrivacyServerSideFixedClipping,
        DifferentialPrivacyServerSideAdaptiveClipping,
    ),
)

_CLIENTS_CLIP = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DPFedAvgAdaptive,
    DPFedAvgFixed,
)
_TAKEN_OVER = "_taken_over_by_fixbn"


def check_no_client_clips(layers: Sequence[object]) -> None:
    """Refuse strategies whose clients clip.

    Raises:
        ConfigError: If one of the layers is such a strategy.
    """
    if any(isinstance(layer, _CLIENTS_CLIP) for layer in layers):
        raise ConfigError(
            f"FixBN got {type(layers[0]).__name__}, whose clients clip all arrays that they "
            "return. In the older generation arrays have no names, so statistics and counters "
            "would be clipped too. Clip on the server (DifferentialPrivacyServerSideFixedClipping)"
            ", or use the Message API with parameters_only of fixbn_flwr."
        )


def take_over(
    strategy: Strategy, names: Sequence[str], whole_of: Callable[[NDArrays], NDArrays]
) -> Parameters | None:
    """Reduce what a strategy keeps of the initial model to parameters.

    Args:
        strategy: The strategy. It and those that it wraps are changed in place.
        names: The names of a whole model's arrays.
        whole_of: Turns parameters into a whole model.

    Returns:
        The whole initial model, or None if the strategy was built without one.

    Raises:
        ConfigError: If the initial model has another number of arrays, or the strategy is or was
            inside another FixBN.
    """
    whole: Parameters | None = None
    for layer in layers_of(strategy, Strategy):
        if vars(layer).setdefault(_TAKEN_OVER, False):
            raise ConfigError(
                f"this {type(layer).__name__} was inside another FixBN, which removed the "
                "statistics from its initial model: build a new one for every FixBN."
            )
        vars(layer)[_TAKEN_OVER] = True
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
    """Return the user's evaluation function, made callable with parameters only."""

    def evaluate_whole(server_round: int, arrays: NDArrays, config: dict[str, Any]) -> Any:
        whole = arrays if len(arrays) == number else whole_of(arrays)
        return evaluate(server_round, whole, config)

    return evaluate_whole
