"""``freeze_after="auto"`` in federations whose best answer is known."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedYogi,
    Krum,
    Result,
    Strategy,
)
from torch import Tensor, nn

from fixbn_flwr import FixBN, Phase
from fixbn_flwr.legacy import FixBN as OlderFixBN
from fixbn_flwr.persistence.checkpoints import Checkpoints
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import Batch, initial_arrays, training_app
from tests.support.older_generation import arrays_of, numpy_app, run_older

CLIENTS, ROUNDS, CLASSES = 4, 20, 4
CENTRES = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(),
        nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES),
    )  # fmt: skip


def batches(*, own_class: bool, steps: int) -> Callable[[int, int], list[Batch]]:
    """Return batches of classified points; each client has a class of its own, or all classes."""

    def of(partition: int, server_round: int) -> list[Batch]:
        random = torch.Generator().manual_seed(1000 * server_round + partition)
        made = []
        for _ in range(steps):
            targets = torch.randint(0, CLASSES, (32,), generator=random)
            if own_class:
                targets[:] = partition
            points: Tensor = CENTRES[targets] + torch.randn(32, 8, generator=random)
            made.append((points, targets))
        return made

    return of


FEDERATIONS: dict[str, dict[str, Any]] = {
    "identical clients": {"own_class": False, "steps": 1},
    "different data, one step": {"own_class": True, "steps": 1},
    "different data, many steps": {"own_class": True, "steps": 30},
}
FROZEN = {"identical clients": False, "different data, one step": True,
          "different data, many steps": False}  # fmt: skip


def federate(
    strategy: FixBN,
    federation: str,
    *,
    run_config: dict[str, Any] | None = None,
    run_id: int = 1,
    arrays: ArrayRecord | None = None,
    rounds: int = ROUNDS,
    **start: Any,
) -> Result:
    app = training_app(network, batches(**FEDERATIONS[federation]), learning_rate=0.1)
    grid = SerializingGrid(app, CLIENTS, run_config=run_config, run_id=run_id)
    return strategy.start(grid, arrays or initial_arrays(network()), rounds, **start)


def fixbn(**options: Any) -> FixBN:
    return FixBN(FedAvg(fraction_evaluate=0.0), **{"freeze_after": "auto", **options})


@pytest.mark.parametrize("federation", FEDERATIONS)
def test_the_rule_freezes_where_it_helps(federation: str) -> None:
    strategy = fixbn()
    federate(strategy, federation)
    assert strategy.freeze_round is not None
    assert (strategy.freeze_round < ROUNDS) == FROZEN[federation], strategy.freeze_reason
    expected = Phase.CALIBRATION if FROZEN[federation] else Phase.EXPLORATION
    assert strategy.phase is expected
    assert "clients' statistics differ by" in strategy.freeze_reason


@pytest.mark.parametrize("federation", FEDERATIONS)
def test_the_older_generation_decides_the_same(federation: str) -> None:
    strategy = fixbn()
    federate(strategy, federation)
    initial = ndarrays_to_parameters(arrays_of(network()))
    older = OlderFixBN(
        OlderFedAvg(initial_parameters=initial, fraction_evaluate=0.0), freeze_after="auto",
        parameter_names=list(network().state_dict()), num_rounds=ROUNDS,
    )  # fmt: skip
    run_older(
        older, numpy_app(network, batches(**FEDERATIONS[federation]), learning_rate=0.1), ROUNDS
    )
    assert (older.freeze_round, older.freeze_reason) == (
        strategy.freeze_round, strategy.freeze_reason,
    )  # fmt: skip


def test_all_clients_are_told_in_the_messages_of_the_next_round() -> None:
    phases: dict[int, set[str]] = {}
    strategy = fixbn()
    configure = strategy.configure_train

    def watched(server_round: int, *arguments: Any) -> list[Message]:
        messages = list(configure(server_round, *arguments))
        phases[server_round] = {
            str(m.content.config_records["config"]["fixbn-phase"]) for m in messages
        }
        return messages

    strategy.configure_train = watched  # type: ignore[method-assign]
    federate(strategy, "different data, one step")
    frozen = strategy.freeze_round
    assert frozen is not None
    assert ROUNDS / 2 <= frozen < ROUNDS
    assert phases == {
        r: {"exploration" if r <= frozen else "calibration"} for r in range(1, ROUNDS + 1)
    }


def test_the_decision_is_logged_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    strategy = fixbn()
    with caplog.at_level(logging.INFO, "flwr.fixbn"):
        federate(strategy, "different data, one step")
    said = [r.getMessage() for r in caplog.records if "decided after" in r.getMessage()]
    assert said == [
        f"FixBN: T* = {strategy.freeze_round}, decided after round {strategy.freeze_round}: "
        f"{strategy.freeze_reason}"
    ]


@pytest.mark.parametrize(
    ("federation", "advice"),
    [
        ("identical clients", "freezing the statistics is likely to make no difference here"),
        ("different data, one step", "freezing the statistics is likely to help here"),
        ("different data, many steps", "freezing the statistics is likely to hurt here"),
    ],
)
def test_plain_bn_ends_with_a_line_of_advice(
    federation: str, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "flwr.fixbn"):
        federate(fixbn(freeze_after=1.0), federation)
    said = [r.getMessage() for r in caplog.records if "likely to" in r.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("FixBN: clients' statistics differ by ")
    assert said[0].endswith(advice)


def test_a_run_that_freezes_after_round_1_has_no_advice() -> None:
    strategy = fixbn(freeze_after=1)
    federate(strategy, "identical clients", rounds=2)
    assert strategy.freeze_round == 1
    assert strategy.advice == ""


@pytest.mark.parametrize("stop", [5, 15, 18])
def test_a_run_resumes_before_and_after_the_decision_with_the_same_bits(
    stop: int, tmp_path: Path
) -> None:
    whole = federate(fixbn(learning_rate_factor="auto"), "different data, one step").arrays
    first, checkpoints = fixbn(learning_rate_factor="auto"), Checkpoints(tmp_path / "c")
    config = {"state-dir": str(tmp_path / "state")}

    def save(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        checkpoints.save(server_round, {"model": arrays, "strategy": first.state()})
        first.checkpoints = checkpoints.rounds()
        if server_round == stop:
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt):
        federate(first, "different data, one step", run_config=config, evaluate_fn=save)
    done, tree = checkpoints.newest()
    again = fixbn(learning_rate_factor="auto")
    again.restore(tree["strategy"])
    again.checkpoints = checkpoints.rounds()
    resumed = federate(
        again, "different data, one step", run_config=config, run_id=2, arrays=tree["model"],
        first_round=done + 1,
    ).arrays  # fmt: skip
    assert {n: a.data for n, a in resumed.items()} == {n: a.data for n, a in whole.items()}


def test_signals_are_metrics_of_every_round() -> None:
    strategy = fixbn()
    metrics = federate(strategy, "different data, one step").train_metrics_clientapp
    updates = {"fixbn-update-norm", "fixbn-update-agreement"}
    statistics = {"fixbn-mean-disagreement", "fixbn-variance-disagreement"}
    later = {"fixbn-systematic-disagreement", "fixbn-drift"}
    assert strategy.freeze_round is not None
    for server_round, of_round in metrics.items():
        expected = updates | (statistics if server_round <= strategy.freeze_round else set())
        expected |= later if 1 < server_round <= strategy.freeze_round else set()
        assert {n for n in of_round if n.startswith("fixbn-")} - {
            "fixbn-clients", "fixbn-dropped"
        } == expected  # fmt: skip


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvgM": lambda: FedAvgM(fraction_evaluate=0.0, server_momentum=0.5),
    "FedYogi": lambda: FedYogi(fraction_evaluate=0.0),
    "FedMedian": lambda: FedMedian(fraction_evaluate=0.0),
    "Krum": lambda: Krum(fraction_evaluate=0.0, num_malicious_nodes=1),
    "clipping around FedAvg": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(fraction_evaluate=0.0), 0.0, 10.0, CLIENTS
    ),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_decides_under_other_strategies(strategy: str) -> None:
    """It reads the replies, not what the inner strategy makes of them."""
    wrapped = FixBN(STRATEGIES[strategy](), freeze_after="auto")
    federate(wrapped, "different data, one step")
    assert wrapped.freeze_round is not None
    assert "their updates agree" in wrapped.freeze_reason
