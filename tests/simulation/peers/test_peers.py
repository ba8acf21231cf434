"""The peers as methods of an experiment, from the shared tables."""

from dataclasses import replace
from pathlib import Path

import pytest

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import forget_splits, get_task, load_splits
from simulation import peers
from simulation.experiments.experiment import EXPERIMENTS, Experiment, Scale
from simulation.experiments.matching_results import search_of
from simulation.experiments.single_run import execute
from simulation.peers import PEERS, peer_of

METHODS = {
    "BN": "", "BN pooled": "", "BN exact": "exact", "FedBN": "fedbn", "SiloBN": "silobn",
    "HBN": "hbn", "FedWon": "fedwon",
}  # fmt: skip
GRID = f"""
title = "?"
[grids.main]
axes = []
methods = {list(METHODS)}
[grids.main.view]
kind = "points"
title = "?"
x = ""
x_label = ""
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    folder: Path = tmp_path_factory.mktemp("experiments")
    (folder / "common.toml").write_text((EXPERIMENTS / "common.toml").read_text())
    (folder / "it.toml").write_text(GRID)
    return Experiment("it", Scale.SMOKE, folder)


def test_each_method_has_an_id_and_a_task_of_its_own(experiment):
    runs = experiment.outline()

    assert len({run.id for run in runs}) == len(METHODS)
    for run in runs:
        peer = METHODS[run.method]
        assert run.run_config["task"] == (f"simulation.peers:{peer}:digits" if peer else "digits")
        assert peer_of(run.run_config["task"]) == (PEERS[peer] if peer else peers.Peer())
    search = search_of(experiment, []).missing[-1].run_config["task"]
    assert search == "simulation.experiments.held_out_task:simulation.peers:fedwon:digits"
    assert peer_of(search) is PEERS["fedwon"]
    assert get_task(search).name == "digits-fedwon-held-out"


def test_a_peers_task_is_one_object_with_the_same_data():
    forget_splits()  # a run in this process may have replaced them by shared ones
    task = get_task("simulation.peers:hbn:digits")

    assert task is get_task("simulation.peers:hbn:digits")
    assert load_splits(task) is load_splits(get_task("digits"))


def test_a_peer_refuses_validation_by_clients(experiment, tmp_path):
    for run in experiment.outline():
        peer, config = METHODS[run.method], {**run.run_config, "validation-share": 0.1}
        if peer:
            with pytest.raises(ConfigError, match=f"validation-share = 0.1: .*{peer}:digits"):
                execute(replace(run, run_config=config), tmp_path / peer, {"device": "cpu"}, "")


def test_an_unknown_peer_is_an_error():
    with pytest.raises(AttributeError, match="name one of exact, fedbn, silobn, faded, hbn"):
        getattr(peers, "nothing:digits")
