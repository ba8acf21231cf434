"""FixBN around older strategies: input that is refused or causes a warning."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.server import SimpleClientManager
from flwr.serverapp.strategy import FedAvg as NewFedAvg

from fixbn_flwr.errors import (
    ConfigError,
    NoStatisticsError,
)
from tests.support.older_federation import NAMES, ROUNDS, app, fedavg, fixbn
from tests.support.older_generation import run_older

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"parameter_names": []}, "must name each of the model's arrays once"),
        ({"parameter_names": "first.weight"}, "must name each of the model's arrays once"),
        ({"parameter_names": [NAMES[0], *NAMES[:-1]]}, "must name each of the model's arrays once"),
        ({"parameter_names": NAMES[:-1]}, "has 11 arrays and parameter_names has 10 names"),
        ({"momentum": "none"}, "is not a mode"),
        ({"statistics": "median"}, "is not an average"),
        ({"freeze_after": -1}, "negative round"),
        ({"num_rounds": 0}, "num_rounds=0"),
        ({"strategy": NewFedAvg()}, r"use fixbn_flwr\.FixBN"),
    ],
)
def test_invalid_options_are_refused_by_the_constructor(
    choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fixbn(**choices)


def test_fixbn_is_not_wrapped_twice() -> None:
    with pytest.raises(ConfigError, match="that is not FixBN itself"):
        fixbn(fixbn())


def test_a_model_without_statistics_is_refused_by_the_constructor() -> None:
    names = ["0.weight", "0.bias"]
    with pytest.raises(NoStatisticsError, match="nothing to freeze"):
        fixbn(fedavg(initial_parameters=None), parameter_names=names)
    fixbn(fedavg(initial_parameters=None), parameter_names=names, freeze_after=1.0)


def test_a_freeze_that_never_happens_causes_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    strategy = fixbn(freeze_after=ROUNDS)
    strategy.initialize_parameters(SimpleClientManager())
    assert caplog.text.count(f"freeze_after={ROUNDS} never freezes in {ROUNDS} rounds") == 1


def test_a_mismatch_of_a_clients_arrays_and_parameter_names_fails() -> None:
    strategy = fixbn(fedavg(initial_parameters=None), parameter_names=[*NAMES, "more.weight"])
    with pytest.raises(ConfigError, match="has 11 arrays and parameter_names has 12 names"):
        run_older(strategy, app(), 1)


def test_a_strategy_can_be_used_in_only_one_fixbn() -> None:
    strategy = fedavg()
    fixbn(strategy)
    with pytest.raises(ConfigError, match="build a new one for every FixBN"):
        fixbn(strategy)


def test_more_rounds_than_num_rounds_cause_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    run_older(fixbn(num_rounds=2, freeze_after=0.5), app(), 4)
    assert caplog.text.count("round 3 comes after num_rounds=2") == 1
    assert "round 4 comes after" not in caplog.text
