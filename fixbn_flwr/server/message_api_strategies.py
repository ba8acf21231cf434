"""The strategies of Flower's Message API that FixBN treats differently.

A release that does not have one of them needs no treatment for it.
"""

from __future__ import annotations

from flwr.serverapp.strategy import Strategy

from fixbn_flwr.flower_compat import message_api_strategies
from fixbn_flwr.server.inner_strategy import StrategyKinds

_CLIPPING_MODS = {
    kind: mod
    for name, mod in (
        ("DifferentialPrivacyClientSideFixedClipping", "fixedclipping_mod"),
        ("DifferentialPrivacyClientSideAdaptiveClipping", "adaptiveclipping_mod"),
    )
    for kind in message_api_strategies(name)
}

MESSAGE_API = StrategyKinds(
    base=Strategy,
    # Krum is a MultiKrum
    defending=message_api_strategies("MultiKrum", "Bulyan", "FedMedian", "FedTrimmedAvg"),
    without_model=message_api_strategies("FedXgbBagging", "FedXgbCyclic"),
    private=(
        *message_api_strategies(
            "DifferentialPrivacyServerSideFixedClipping",
            "DifferentialPrivacyServerSideAdaptiveClipping",
        ),
        *_CLIPPING_MODS,
    ),
    clipping_mods=_CLIPPING_MODS,
    loss_keys=dict.fromkeys(message_api_strategies("QFedAvg"), "train_loss_key"),
)
