"""Only results of the current plan of an experiment are selected."""

import dataclasses
from typing import Any

import pytest

from simulation.experiments.experiment import Experiment, Scale
from simulation.experiments.matching_results import in_place_of, lines_of, searched_rates
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


def test_there_are_no_rates_until_all_searches_have_completed(momentum):
    lines = [line(run) for run in momentum.searches()]

    assert searched_rates(momentum, lines[:-1]) is None
    assert searched_rates(momentum, lines) is not None


def test_a_rate_that_diverged_is_not_the_best(momentum):
    first, *others = momentum.searches()
    lines = [line(first, 0.9, failure="NaN"), *(line(run, 0.1) for run in others)]
    rate = searched_rates(momentum, lines)

    assert rate is not None
    assert rate(first.method, first.setting) == others[0].run_config["learning-rate"]


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
