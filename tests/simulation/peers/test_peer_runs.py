"""All peers run, from the shared tables of the experiments."""

import math

import pytest

from fixbn_flwr.app.cli import CLIENT_MODULES
from fixbn_flwr.engine.fork_server import start_fork_server
from simulation.experiments.single_run import execute
from tests.simulation.peers.test_peers import METHODS, experiment

pytestmark = pytest.mark.slow
__all__ = ["experiment"]


@pytest.mark.parametrize("method", [m for m, peer in METHODS.items() if peer])
def test_a_peer_trains(method, experiment, tmp_path):
    run = next(run for run in experiment.results(lambda *_: 0.05) if run.method == method)
    start_fork_server(CLIENT_MODULES)
    result = execute(run, tmp_path / "run", {"device": "cpu", "data-dir": ""}, "")

    assert not result.diverged
    assert sorted(result.accuracies) == [2, 4]
    assert result.accuracy > 0.14  # chance is 0.1
    assert math.isfinite(result.losses[4])
    personal = method in ("FedBN", "SiloBN")
    assert (result.own_accuracy is not None) == personal
    if personal:
        assert result.own_accuracy > result.accuracy + 0.05
