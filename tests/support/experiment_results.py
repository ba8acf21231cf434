"""The committed results of the experiments, at cpu size."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable

from simulation.experiments.experiment import Experiment, Scale
from simulation.experiments.matching_results import lines_of, searched_rates
from simulation.experiments.result_log import Result, read, results_file


def results_of(name: str) -> list[Result]:
    """Return the results that the experiment requires."""
    experiment = Experiment(name, Scale.CPU)
    lines = read(results_file(name, "cpu"))
    rate = searched_rates(experiment, lines)
    assert rate is not None, name
    return lines_of(experiment.results(rate), lines)


def means_of(results: Iterable[Result]) -> dict[tuple[str, ...], float]:
    """Return the mean accuracy in % over the seeds, by method and setting."""
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for result in results:
        found[result.method, *result.setting.values()].append(100 * (result.accuracy or 0.0))
    return {place: statistics.fmean(values) for place, values in found.items()}


def finished_results_of(name: str) -> list[Result]:
    """Return those results of the experiment's plan whose whole setting and seed has finished."""
    experiment = Experiment(name, Scale.CPU)
    lines = read(results_file(name, "cpu"))
    rate = searched_rates(experiment, lines)
    assert rate is not None, name
    planned = experiment.results(rate)
    found = lines_of(planned, lines)
    number: dict[tuple[str, ...], int] = defaultdict(int)
    for run in planned:
        number[run.grid, str(run.setting), str(run.seed)] += 1
    for line in found:
        number[line.grid, str(dict(line.setting)), str(line.seed)] -= 1
    return [
        line for line in found if not number[line.grid, str(dict(line.setting)), str(line.seed)]
    ]
