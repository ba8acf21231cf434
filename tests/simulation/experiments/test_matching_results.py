"""Only results of the current plan of an experiment are selected."""

import dataclasses
from typing import Any

import pytest

from simulation.experiments.experiment import Experiment, Scale
from simulation.experiments.matching_results import in_place_of, lines_of, search_of
from simulation.experiments.planned_run import Run
from simulation.experiments.result_log import Result
from tests.support.handmade import result


@pytest.fixture(scope="module")
def momentum() -> Experiment:
    return Experiment("momentum", Scale.SMOKE)


def line(run: Run, accuracy: float | None = 0.5, **fields: Any) -> Result:
    """Return the result of a run."""
    made = result(run.method, run.setting, accuracy)
    return dataclasses.replace(
        made, id=run.id, kind=run.kind, grid=run.grid, seed=run.seed, run_config=run.run_config,
        learning_rate=run.run_config["learning-rate"], **fields,
    )  # fmt: skip


def searched(experiment: Experiment, scores: dict[float, float]) -> list[Result]:
    """Return the results of a search with these accuracies by rate, for every method."""
    return [
        line(experiment.search(method, setting, rate), accuracy)
        for method, setting in experiment.searched_places()
        for rate, accuracy in scores.items()
    ]


def test_the_search_begins_with_the_first_rates_of_every_method(momentum):
    search = search_of(momentum, [])

    assert [(run.method, run.run_config["learning-rate"]) for run in search.missing] == [
        ("BN", 0.02), ("BN", 0.04), ("FixBN", 0.02), ("FixBN", 0.04),
    ]  # fmt: skip
    assert search.rate("BN", {}) is None
    assert momentum.results(search.rate) == []


def test_the_search_goes_on_until_the_best_rate_lies_inside(momentum):
    search = search_of(momentum, searched(momentum, {0.02: 0.3, 0.04: 0.5}))
    assert {run.run_config["learning-rate"] for run in search.missing} == {0.08}

    lines = searched(momentum, {0.02: 0.3, 0.04: 0.5, 0.08: 0.4})
    search = search_of(momentum, [*lines, *searched(momentum, {0.16: 0.9})])
    assert search.missing == []
    assert [search.rate(method, {}) for method in ("BN", "FixBN")] == [0.04] * 2
    assert search.ended == lines  # without the rate that the search did not ask for
    assert [run.id for run in search.tried] == [result.id for result in lines]


def test_a_rate_that_diverged_is_not_the_best(momentum):
    lines = searched(momentum, {0.02: 0.1, 0.01: 0.05})
    diverged = [
        line(momentum.search(method, setting, 0.04), 0.9, failure="NaN")
        for method, setting in momentum.searched_places()
    ]

    assert search_of(momentum, [*lines, *diverged]).rate("BN", {}) == 0.02


def test_one_rate_is_not_searched():
    search = search_of(Experiment("freeze-rule", Scale.SMOKE), [])

    assert search.missing == []
    assert search.rate("never", {}) == 0.05


def test_results_are_in_the_order_of_the_plan_without_those_of_another_plan(momentum):
    runs = momentum.results(lambda *_: 0.05)
    earlier = momentum.results(lambda *_: 0.01)
    lines = [line(run) for run in [*reversed(runs), *earlier]]

    assert [found.id for found in lines_of(runs, lines)] == [run.id for run in runs]
    assert lines_of(runs, lines[len(runs) :]) == []


def test_a_result_with_another_default_belongs_to_another_run(momentum):
    (run, *_) = momentum.results(lambda *_: 0.05)
    other = {**run.run_config, "weight-decay": 0.5}
    fewer = {key: value for key, value in run.run_config.items() if key != "state-dir"}

    assert lines_of([run], [line(run)])
    assert not lines_of([run], [dataclasses.replace(line(run), run_config=other)])
    assert lines_of([run], [dataclasses.replace(line(run), run_config=fewer)])


def test_a_result_copied_to_another_run_keeps_extra_measurements_only_if_asked(momentum):
    run, other = momentum.results(lambda *_: 0.05)[:2]
    measured = line(run, extra={"gradients": [1]})

    assert in_place_of(other, measured, with_extra=False).extra == {}
    moved = in_place_of(other, measured, with_extra=True)
    assert (moved.method, moved.setting, moved.extra) == (
        other.method, other.setting, {"gradients": [1]},
    )  # fmt: skip
    assert moved.accuracy == measured.accuracy
