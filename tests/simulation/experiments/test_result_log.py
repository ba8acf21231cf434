"""Results are read as they were written."""

import math

import pytest

from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.schedule import Phase
from simulation.experiments.result_log import (
    Result,
    append,
    mean_of_last_rounds,
    read,
    results_file,
)

RESULT = Result(
    id="0123", kind="result", grid="main", method="FixBN", setting={"partition": "IID"}, seed=1,
    clients=5, learning_rate=0.05, accuracy=0.4, accuracies={5: 0.3, 10: 0.5},
    losses={5: 1.5, 10: 1.25}, failure=None, dropped=0, seconds=1.5,
    bytes_sent=10.0, bytes_received=12.0,
    client_state_bytes=0.0, run_config={"task": "digits", "seed": 1},
    started="2026-11-22T14:00:00", hardware={"cores": 2}, versions={"torch": "2"},
    command="python -m simulation.experiments run x",
)  # fmt: skip


def round_metrics(
    number: int, accuracy: float | None, phase: Phase = Phase.EXPLORATION
) -> RoundMetrics:
    return RoundMetrics(number, phase, 0.1, 1.0, None, accuracy, 0, 0, 1.0, 5, 0)


def test_results_are_read_as_they_were_written(tmp_path):
    path = results_file("x", "smoke", tmp_path)
    diverged = Result(**{**RESULT.__dict__, "id": "4567", "losses": {5: math.inf}})
    append(path, RESULT)
    append(path, diverged)

    assert path == tmp_path / "x" / "smoke.jsonl"
    assert read(path) == [RESULT, diverged]
    assert [result.diverged for result in read(path)] == [False, True]


def test_nan_is_read_back(tmp_path):
    path = tmp_path / "it.jsonl"
    append(path, Result(**{**RESULT.__dict__, "losses": {5: math.nan}}))

    (result,) = read(path)
    assert math.isnan(result.losses[5])
    assert result.diverged


def test_a_failed_run_counts_as_diverged():
    assert Result(**{**RESULT.__dict__, "failure": "no client answered"}).diverged


def test_a_missing_file_has_no_results(tmp_path):
    assert read(tmp_path / "nothing.jsonl") == []


def test_an_incomplete_line_is_ignored_and_overwritten(tmp_path):
    path = tmp_path / "it.jsonl"
    append(path, RESULT)
    with path.open("a") as file:
        file.write('{"id": "torn')

    assert read(path) == [RESULT]
    append(path, RESULT)
    assert read(path) == [RESULT, RESULT]


def test_only_rounds_after_a_freeze_count():
    rounds = [
        round_metrics(8, 0.1), round_metrics(9, 0.2),
        round_metrics(10, 0.5, Phase.CALIBRATION),
    ]  # fmt: skip

    assert mean_of_last_rounds(rounds, 10) == 0.5


@pytest.mark.parametrize("damage", ["{", "[]", '{"id": "1"}'])
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "it.jsonl"
    append(path, RESULT)
    with path.open("a") as file:
        file.write(damage + "\n")

    with pytest.raises(ConfigError, match=r"it\.jsonl, line 2: not a result .* delete the line"):
        read(path)


def test_the_last_rounds_are_the_last_fifth():
    rounds = [round_metrics(number, number / 100) for number in range(1, 11)]

    assert mean_of_last_rounds(rounds, 10) == pytest.approx((0.08 + 0.09 + 0.1) / 3)
    assert mean_of_last_rounds(rounds[:7], 10) is None
    assert mean_of_last_rounds([round_metrics(1, 0.5), round_metrics(2, None)], 1) == 0.5
