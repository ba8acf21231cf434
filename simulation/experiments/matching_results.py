"""Select the recorded results that belong to the current plan of an experiment.

When a plan changes, results of the earlier plan stay in the file. Tables must not include them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from simulation.experiments.experiment import Experiment, Rate
from simulation.experiments.planned_run import Run
from simulation.experiments.result_log import Result


def lines_of(runs: Iterable[Run], lines: Iterable[Result]) -> list[Result]:
    """Return the results of the runs that have completed, in the order of the runs."""
    found = {_place(line): line for line in lines}
    ended = [(run, found[_place(run)]) for run in runs if _place(run) in found]
    return [line for run, line in ended if same_config(run, line)]


def searched_rates(experiment: Experiment, lines: Sequence[Result]) -> Rate | None:
    """Return the rates with the highest held-out accuracy; None until all searches completed."""
    searches = experiment.searches()
    ended = lines_of(searches, lines)
    if len(ended) < len(searches):
        return None
    scores = [-1.0 if line.diverged else line.accuracy or 0.0 for line in ended]
    return experiment.chosen(zip(searches, scores, strict=True))


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
