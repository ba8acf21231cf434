"""FixBN around older strategies: invalid replies are not averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAvg

from fixbn_flwr.errors import (
    RoundsFailedError,
    StatisticsMovedError,
)
from tests.support.older_federation import NAMES, ROUNDS, STATISTICS, app, fedavg, fixbn
from tests.support.older_generation import Arrays, Trainer, arrays_of, run_older
from tests.support.small_federation import network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def change(
    name: str, make: Callable[[np.ndarray], Any], *, client: int = 1, from_round: int = 1
) -> Callable[..., None]:
    """Return an `on_reply` that changes one array of one client's reply."""

    def on_reply(partition: int, server_round: int, arrays: Arrays, _: dict[str, Any]) -> None:
        if partition == client and server_round >= from_round:
            arrays[NAMES.index(name)] = np.asarray(make(arrays[NAMES.index(name)]))

    return on_reply


def test_an_unreadable_momentum_blob_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    def on_reply(partition: int, _: int, __: Arrays, metrics: dict[str, Any]) -> None:
        if partition == 1:
            metrics["fixbn-momentum-buffers"] = b"torn"

    of_round = run_older(fixbn(momentum="global"), app(on_reply=on_reply), 1)
    assert "its 'fixbn-momentum-buffers' cannot be read" in caplog.text
    assert not np.array_equal(of_round[0][0], of_round[1][0])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("first.weight", lambda a: a * np.nan, "holds NaN or infinity"),
        ("norm.running_var", lambda a: a * 0 - 1, "below zero"),
        ("first.bias", lambda a: a[:-1], "was sent with (5,)"),
        ("norm.num_batches_tracked", lambda a: a.astype(np.float64), "type float64 and was"),
    ],
)
def test_a_bad_reply_is_dropped_and_logged(
    name: str, make: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = run_older(fixbn(), app(on_reply=change(name, make)), ROUNDS)
    assert f"round {ROUNDS}: reply dropped, client 1001: " in caplog.text
    assert message in caplog.text
    assert all(np.isfinite(array).all() for array in bad[ROUNDS])


def test_a_dropped_reply_counts_as_a_failure() -> None:
    """So a strategy that accepts no failures does not average the other replies."""
    strategy = fixbn(fedavg(accept_failures=False))
    with pytest.raises(RoundsFailedError, match="FedAvg made no model from 3 usable replies"):
        run_older(strategy, app(on_reply=change("first.bias", lambda a: a * np.inf)), ROUNDS)


def test_an_average_that_is_not_finite_is_rejected() -> None:
    class Overflowing(FedAvg):
        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            parameters, metrics = super().aggregate_fit(server_round, results, failures)
            assert parameters is not None
            first, *rest = parameters_to_ndarrays(parameters)
            return ndarrays_to_parameters([first * np.inf, *rest]), metrics

    initial = ndarrays_to_parameters(arrays_of(network()))
    strategy = fixbn(Overflowing(initial_parameters=initial, fraction_evaluate=0.0))
    with pytest.raises(RoundsFailedError, match="Overflowing produced NaN or infinity from finite"):
        run_older(strategy, app(), ROUNDS)


def test_clients_without_all_arrays_fail_with_the_remedy() -> None:
    class ParametersOnly(Trainer):
        def fit(self, parameters: Any, config: Any) -> Any:
            arrays, *rest = super().fit(parameters, config)
            return arrays[:4], *rest

    with pytest.raises(RoundsFailedError, match=r"holds 4 arrays and was sent 11: return all of"):
        run_older(fixbn(), app(client=ParametersOnly), ROUNDS)


def test_a_run_in_which_all_clients_fail_stops_with_their_reasons() -> None:
    class Failing(Trainer):
        def fit(self, parameters: Any, config: Any) -> Any:
            raise FileNotFoundError("no such folder: /data")

    with pytest.raises(RoundsFailedError, match="no such folder: /data"):
        run_older(fixbn(), app(client=Failing), ROUNDS)


@pytest.mark.parametrize("strict", [False, True])
def test_a_client_that_does_not_freeze_is_logged(
    strict: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class WithoutFixBN(Trainer):
        """A client that does not pass FixBN's config on."""

        def fit(self, parameters: Any, config: Any) -> Any:
            return super().fit(parameters, {"server-round": config["server-round"]})

    strategy = fixbn(strict=strict)
    if strict:
        with pytest.raises(StatisticsMovedError, match="client 1000 returned 2 of 2 frozen"):
            run_older(strategy, app(client=WithoutFixBN), ROUNDS)
        return
    of_round = run_older(strategy, app(client=WithoutFixBN), ROUNDS)
    assert "client 1003 returned 2 of 2 frozen statistics changed" in caplog.text
    for place in STATISTICS:
        assert np.array_equal(of_round[2][place], of_round[ROUNDS][place])
