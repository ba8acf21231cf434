"""The network of `small_federation`, trained by FixBN of Flower's older generation."""

from __future__ import annotations

from typing import Any

from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import FedAvg

from fixbn_flwr.legacy import FixBN
from fixbn_flwr.method.averaging import Kind, kind_of
from tests.support.older_generation import arrays_of, numpy_app
from tests.support.small_federation import batches, network

CLIENTS, ROUNDS = 4, 4
NAMES = list(network().state_dict())
STATISTICS = [place for place, name in enumerate(NAMES) if kind_of(name) is Kind.STATISTIC]


def fedavg(**choices: Any) -> FedAvg:
    initial = ndarrays_to_parameters(arrays_of(network()))
    return FedAvg(**{"initial_parameters": initial, "fraction_evaluate": 0.0, **choices})


def fixbn(strategy: Any = None, **choices: Any) -> FixBN:
    choices = {"freeze_after": 2, "parameter_names": NAMES, "num_rounds": ROUNDS, **choices}
    return FixBN(strategy or fedavg(), **choices)


def app(**choices: Any) -> Any:
    return numpy_app(network, batches, **choices)
