from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fixbn_flwr import Phase
from fixbn_flwr.errors import ConfigError, NoStatisticsError, StatisticsMovedError
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.method.round_config import Momentum, RoundConfig
from fixbn_flwr.method.server_rules import ServerState
from fixbn_flwr.method.update import Update

NAMES = ["w", "n.weight", "n.running_mean", "n.running_var", "n.num_batches_tracked"]


def state(freeze_after: int | float = 2, **choices: Any) -> ServerState:
    defaults = {"momentum": "local", "statistics": "mean", "learning_rate_factor": 0.5}
    return ServerState(freeze_after, **{**defaults, **choices})


def rest(mean: float, var: float = 1.0, count: int = 0) -> dict[str, Array]:
    return {
        "n.running_mean": np.float32([mean]),
        "n.running_var": np.float32([var]),
        "n.num_batches_tracked": np.asarray(count),
    }


def update(mean: float, weight: float, *, count: int = 0, momentum: float | None = None) -> Update:
    buffers: dict[str, Array] = {} if momentum is None else {"w": np.float32([momentum])}
    return Update(rest(mean, count=count), buffers, weight)


def test_a_run_explores_and_then_calibrates() -> None:
    server = state()
    server.start(3, NAMES)
    arrays = rest(0)
    assert server.begin_round(1, arrays) == RoundConfig(1, Phase.EXPLORATION, Momentum.LOCAL, 1.0)
    arrays = server.end_round([update(0, 1, count=4), update(4, 3, count=2)], arrays)
    assert arrays == rest(3, 1, 4)
    assert server.frozen_statistics is None
    server.begin_round(2, arrays)
    arrays = server.end_round([update(5, 1, count=6)], arrays)
    assert server.begin_round(3, arrays) == RoundConfig(
        3, Phase.CALIBRATION, Momentum.LOCAL, 0.5, kept_round=2
    )
    assert server.frozen_statistics == {"n.running_mean": 5, "n.running_var": 1}
    assert server.end_round([update(9, 1, count=99)], arrays) == rest(5, 1, 6)


def test_pooled_statistics_are_aggregated() -> None:
    server = state(statistics="pooled")
    server.start(3, NAMES)
    server.begin_round(1, rest(0))
    assert server.end_round([update(0, 1), update(4, 3)], rest(0)) == rest(3, 4)


def test_a_defending_strategy_receives_statistics_and_momentum() -> None:
    server = state(1, momentum="global")
    server.start(3, NAMES)
    sent = update(5, 1, momentum=7)
    server.begin_round(1, rest(0))
    assert server.to_defend(sent) == {
        "n.running_mean": 5, "n.running_var": 1, "fixbn-momentum/w": 7,
    }  # fmt: skip
    server.begin_round(2, rest(0))
    assert server.to_defend(sent) == {"fixbn-momentum/w": 7}  # the statistics are frozen


@pytest.mark.parametrize(
    ("counts", "median"), [([2, 2**62, 4], 4), ([2, 4], 2), ([9], 9), ([0, 8, 6, 4], 4)]
)
def test_a_defended_round_uses_the_strategys_arrays_and_the_median_count(
    counts: list[int], median: int
) -> None:
    server = state(1, momentum="global")
    server.start(3, NAMES)
    server.begin_round(1, rest(0))
    defended = {
        "n.running_mean": np.float64([3]),
        "n.running_var": np.float64([0.5]),
        "fixbn-momentum/w": np.float32([8]),
    }
    updates = [update(1e6, 1, count=count, momentum=1e6) for count in counts]
    after = server.end_round(updates, rest(0), defended=defended)
    assert after == rest(3, 0.5, median)
    assert {name: array.dtype for name, array in after.items()} == {
        name: array.dtype for name, array in rest(0).items()
    }
    assert server.global_momentum == {"w": 8}


def test_moved_statistics_are_reported_only_in_calibration(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = state(1)
    server.start(3, NAMES)
    server.begin_round(1, rest(0))
    server.check_unmoved("a", update(1, 1), strict=True)
    server.begin_round(2, rest(0))
    server.check_unmoved("b", update(0, 1), strict=True)
    assert not caplog.records
    for mean in (1, float(np.nextafter(np.float32(0), np.float32(1)))):
        caplog.clear()
        server.check_unmoved("c", update(mean, 1), strict=False)
        assert "client c returned 1 of 2 frozen statistics changed, first 'n.ru" in caplog.text
        with pytest.raises(StatisticsMovedError, match="client c returned 1 of 2"):
            server.check_unmoved("c", update(mean, 1), strict=True)


def test_statistics_that_a_narrower_model_rounds_have_not_moved() -> None:
    server = state(1)
    server.start(3, NAMES)
    server.begin_round(2, rest(0.1))
    server.check_unmoved("bfloat16", update(0.10009765625, 1), strict=True)
    server.check_unmoved("float16", update(float(np.float16(0.1)), 1), strict=True)
    with pytest.raises(StatisticsMovedError, match="client c returned 1 of 2"):
        server.check_unmoved("c", update(0.10058594, 1), strict=True)  # the next bfloat16
    assert server.end_round([update(0.10009765625, 1)], rest(0.1)) == rest(0.1)


def test_global_momentum_is_the_weighted_mean_in_both_phases() -> None:
    server = state(1, momentum="global")
    server.start(3, NAMES)
    for server_round in (1, 2):
        server.begin_round(server_round, rest(0))
        server.end_round([update(0, 1, momentum=0), update(0, 3, momentum=4)], rest(0))
        assert server.global_momentum == {"w": 3}


@pytest.mark.parametrize("mode", ["reset", "local"])
def test_other_modes_have_no_global_momentum(mode: str) -> None:
    server = state(1, momentum=mode)
    server.start(3, NAMES)
    server.begin_round(1, rest(0))
    server.end_round([update(0, 1, momentum=1)], rest(0))
    assert server.global_momentum == {}


def test_start_clears_the_state_of_the_previous_run() -> None:
    server = state(1, momentum="global")
    server.start(2, NAMES)
    server.begin_round(2, rest(1))
    server.observe({1: update(1, 1, momentum=1)}, {})
    server.end_round([update(1, 1, momentum=1)], rest(1))
    assert (server.factor, server.last_signals is None) == (0.5, False)
    server.start(2, NAMES)
    assert server.frozen_statistics is None
    assert server.global_momentum == {}
    assert server.phase is Phase.EXPLORATION
    assert (server.factor, server.last_signals) == (1.0, None)
    server.begin_round(2, rest(7))
    assert server.frozen_statistics is not None
    assert server.frozen_statistics["n.running_mean"] == 7


def test_starting_in_calibration_freezes_the_initial_statistics() -> None:
    server = state(5)
    server.start(10, NAMES)
    server.begin_round(8, rest(3))
    assert server.frozen_statistics == {"n.running_mean": 3, "n.running_var": 1}


def test_a_fraction_of_rounds_needs_the_number_of_rounds() -> None:
    with pytest.raises(ConfigError, match=r"freeze_after=0\.5"):
        state(0.5).begin_round(1, rest(0))
    assert state(2).begin_round(3, rest(0)).phase is Phase.CALIBRATION  # an int does not need it


def test_a_model_without_statistics_is_refused_at_the_start() -> None:
    names = ["w", "my_running_mean", "n.num_batches_tracked"]
    with pytest.raises(NoStatisticsError, match="none of the model's 3 arrays"):
        state(1).start(3, names)
    state(1.0).start(3, names)  # no round freezes statistics


@pytest.mark.parametrize(
    "wrong",
    [
        {"momentum": "Local"},
        {"momentum": None},
        {"statistics": ""},
        {"learning_rate_factor": -1.0},
        {"learning_rate_factor": float("inf")},
        {"learning_rate_factor": "0.1"},
    ],
)
def test_invalid_options_are_refused(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        state(**wrong)
