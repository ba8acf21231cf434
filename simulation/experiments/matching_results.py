"""Select the recorded results that belong to the current plan of an experiment.

When a plan changes, results of the earlier plan stay in the file. Tables must not include them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulation.experiments.experiment import Experiment
from simulation.experiments.planned_run import Run
from simulation.experiments.rate_search import DIVERGED, best_rate, next_rates
from simulation.experiments.result_log import Result


def lines_of(runs: Iterable[Run], lines: Iterable[Result]) -> list[Result]:
    """Return the results of the runs that have completed, in the order of the runs."""
    found = {_place(line): line for line in lines}
    ended = [(run, found[_place(run)]) for run in runs if _place(run) in found]
    return [line for run, line in ended if same_config(run, line)]


@dataclass(frozen=True)
class Search:
    """Where the search for an experiment's learning rates stands.

    Attributes:
        tried: The runs of the search that have ended.
        ended: Their results.
        missing: The runs to do next; empty if the search is over.
        rates: The best rate of each method and setting whose search is over, or the only one.
    """

    tried: list[Run]
    ended: list[Result]
    missing: list[Run]
    rates: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

    def rate(self, method: str, setting: Mapping[str, str]) -> float | None:
        """Return the best rate of a method in a setting; None while it is searched for."""
        return self.rates.get((method, tuple(setting.items())))


def search_of(experiment: Experiment, lines: Sequence[Result]) -> Search:
    """Return where the search for learning rates stands, by the recorded results.

    The score of a rate is its held-out accuracy. A run that diverged has the lowest score.
    """
    recorded = [line for line in lines if line.kind == "search"]
    tried: list[Run] = []
    ended: list[Result] = []
    missing: list[Run] = []
    rates = {}
    for method, setting in experiment.searched_places():
        if len(experiment.first_rates) == 1:
            rates[method, tuple(setting.items())] = experiment.first_rates[0]
            continue
        scores: dict[float, float] = {}
        while rates_to_try := next_rates(scores, experiment.first_rates):
            runs = [experiment.search(method, setting, rate) for rate in rates_to_try]
            found = lines_of(runs, recorded)
            for line in found:
                scores[line.learning_rate] = DIVERGED if line.diverged else line.accuracy or 0.0
            ended += found
            tried += [run for run in runs if run.run_config["learning-rate"] in scores]
            if len(found) < len(runs):
                missing += [run for run in runs if run.run_config["learning-rate"] not in scores]
                break
        else:
            rates[method, tuple(setting.items())] = best_rate(scores)
    return Search(tried, ended, missing, rates)


def recorded_results(experiment: Experiment, lines: Sequence[Result]) -> list[Result]:
    """Return the results of the experiment's current plan that have been recorded."""
    return lines_of(experiment.results(search_of(experiment, lines).rate), lines)


def same_config(run: Run, line: Result) -> bool:
    """Return whether a result has the run's config. Its id omits defaults, which can change."""
    return {**run.run_config, **line.run_config} == run.run_config


def in_place_of(run: Run, line: Result, *, with_extra: bool) -> Result:
    """Return the result of the same run in another experiment or grid as that of this run."""
    return replace(
        line,
        kind=run.kind,
        grid=run.grid,
        method=run.method,
        setting=run.setting,
        extra=line.extra if with_extra else {},
    )


def _place(run: Run | Result) -> tuple[Any, ...]:
    # All grids share a search.
    where = () if run.kind == "search" else (run.grid,)
    return run.id, run.kind, *where, run.method, tuple(run.setting.items())
