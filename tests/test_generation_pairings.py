"""Both generations of strategies with every kind of client: which pairs work, and which errors.

=====================  ============  =====================  ============
strategy               NumPyClient   NumPyClient and mod    @app.train()
=====================  ============  =====================  ============
fixbn_flwr.FixBN       error: mod    works                  works
fixbn_flwr.legacy      works         works                  error: older
=====================  ============  =====================  ============

Where a pair does not work, Flower alone would complete the run without training anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fixbn_flwr import FixBN, numpy_client_mod
from fixbn_flwr.errors import RoundsFailedError
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, training_app
from tests.support.older_federation import CLIENTS, NAMES, fixbn
from tests.support.older_generation import arrays_of, numpy_app, run_older
from tests.support.small_federation import batches, network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROUNDS = 3
CLIENT_APPS = {
    "NumPyClient": lambda: numpy_app(network, batches),
    "NumPyClient and mod": lambda: numpy_app(network, batches, mods=[numpy_client_mod]),
    "@app.train()": lambda: training_app(network, batches),
}


def newer(client_app: ClientApp) -> list[np.ndarray]:
    strategy = FixBN(FedAvg(fraction_evaluate=0.0), freeze_after=2)
    result = strategy.start(SerializingGrid(client_app, CLIENTS), initial_arrays(network()), ROUNDS)
    return [array.numpy() for array in result.arrays.values()]


def older(client_app: ClientApp) -> list[np.ndarray]:
    return run_older(fixbn(num_rounds=ROUNDS), client_app, ROUNDS)[ROUNDS]


WORKS = [
    (newer, "NumPyClient and mod"),
    (newer, "@app.train()"),
    (older, "NumPyClient"),
    (older, "NumPyClient and mod"),
]
FAILS = [
    (newer, "NumPyClient", r"NumPyClients and .*: add mods=\[numpy_client_mod\]"),
    (older, "@app.train()", r"look for records .arrays. .* older generation .* never does"),
]


def test_all_supported_pairs_give_the_same_bits() -> None:
    results = [run(CLIENT_APPS[client]()) for run, client in WORKS]
    initial = arrays_of(network())
    assert not np.array_equal(results[0][0], initial[0])
    for result in results[1:]:
        for name, array, expected in zip(NAMES, result, results[0], strict=True):
            assert np.array_equal(array, expected), name


@pytest.mark.parametrize(("run", "client", "message"), FAILS)
def test_the_error_of_an_unsupported_pair_states_the_remedy(
    run: Any, client: str, message: str
) -> None:
    with pytest.raises(RoundsFailedError, match=rf"(?s)The global model is unchanged.*{message}"):
        run(CLIENT_APPS[client]())


def test_every_pair_is_tested() -> None:
    pairs = [*WORKS, *(pair[:2] for pair in FAILS)]
    assert len(pairs) == len(set(pairs)) == 2 * len(CLIENT_APPS)
