"""Which of the lines on file belong to an experiment as it is planned now.

A plan changes: a rate more to try, other sizes, a method less. Lines of an earlier plan stay in the
file, but a table that counted them would mix runs that differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from simulation.experiments.experiment import Experiment, Rate, Run
from simulation.experiments.result_log import Result


def lines_of(runs: Iterable[Run], lines: Iterable[Result]) -> list[Result]:
    """The lines of these runs, as far as they have ended, in the order of the runs."""
    found = {_place(line): line for line in lines}
    ended = [(run, found[_place(run)]) for run in runs if _place(run) in found]
    return [line for run, line in ended if same_config(run, line)]


def searched_rates(experiment: Experiment, lines: Sequence[Result]) -> Rate | None:
    """The learning rate with the highest held-out accuracy; None until all searches have ended."""
    searches = experiment.searches()
    ended = lines_of(searches, lines)
    if len(ended) < len(searches):
        return None
    scores = [-1.0 if line.diverged else line.accuracy or 0.0 for line in ended]
    return experiment.chosen(zip(searches, scores, strict=True))


def same_config(run: Run, line: Result) -> bool:
    """Whether a line is of this very run: its id leaves out defaults, which may have changed."""
    return {**run.run_config, **line.run_config} == run.run_config


def in_place_of(run: Run, line: Result, *, with_extra: bool) -> Result:
    """A line of the same run in another experiment, or in another place of this one."""
    return replace(
        line,
        kind=run.kind,
        grid=run.grid,
        method=run.method,
        setting=run.setting,
        extra=line.extra if with_extra else {},
    )


def _place(run: Run | Result) -> tuple[Any, ...]:
    # A search is made once for all grids.
    where = () if run.kind == "search" else (run.grid,)
    return run.id, run.kind, *where, run.method, tuple(run.setting.items())
