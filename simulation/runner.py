"""Makes the runs of an experiment: several at a time, each at most once, going on where it stopped.

A run that has ended is a line in the experiment's results, and is never made again; nor is one that
another experiment has made at the same scale. What was running when the runner was stopped is made
anew, from its beginning. So any number of interruptions costs at most the runs under way.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fixbn_flwr.errors import FixBNError
from simulation.execution import execute, prepare
from simulation.plan import Experiment, Run
from simulation.records import Result, append, read, results_file

_POLL = 2.0  # seconds between two looks at the running ones


class Runner:
    """Makes an experiment's runs and keeps its results.

    Args:
        experiment: which, and at which scale.
        results: the folder of all experiments' results.
        folders: where run folders are made.
        workers: how many runs are made at a time.
        machine: the run config's keys that belong to this machine: data-dir and device.
    """

    def __init__(
        self,
        experiment: Experiment,
        results: Path,
        folders: Path,
        workers: int,
        machine: Mapping[str, str],
    ) -> None:
        self._experiment = experiment
        self._file = results_file(experiment.name, experiment.scale, results)
        self._elsewhere = [
            path for path in sorted(results.glob(f"*/{experiment.scale}.jsonl"))
            if path != self._file
        ]  # fmt: skip
        self._folders = folders / experiment.scale
        self._workers = workers
        self._machine = machine

    def run(self) -> list[Result]:
        """Search learning rates, make all runs, and return every line of the experiment.

        Raises:
            FixBNError: a run could not begin, or its process was killed; all that ended is kept.
        """
        searches = self._experiment.searches()
        later = self._experiment.results(lambda *_: 0.1)  # as many, and as long
        with _progress() as progress, self._processes() as pool:
            total = progress.add_task(self._experiment.name, total=_work([*searches, *later]))
            self._make(searches, pool, progress, total)
            self._make(self._experiment.results(self.rate), pool, progress, total)
        return read(self._file)

    def rate(self, method: str, setting: Mapping[str, str]) -> float:
        """The learning rate with the highest held-out accuracy among those tried."""
        only = self._experiment.only_rate()
        if only is not None:
            return only
        tried = [
            result
            for result in read(self._file)
            if result.kind == "search" and (result.method, result.setting) == (method, setting)
        ]
        best = max(tried, key=lambda r: -1.0 if r.diverged else r.accuracy or 0.0)
        return best.learning_rate

    @contextmanager
    def _processes(self) -> Iterator[ProcessPoolExecutor]:
        """The worker processes, each started when there is first a run for it."""
        context = multiprocessing.get_context("spawn")
        threads = max(1, (os.cpu_count() or 1) // self._workers)
        pool = ProcessPoolExecutor(self._workers, context, prepare, (threads,))
        with pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise

    def _make(
        self, runs: Sequence[Run], pool: ProcessPoolExecutor, progress: Progress, total: TaskID
    ) -> None:
        done = {_place(result) for result in read(self._file)}
        missing = [run for run in runs if _place(run) not in done]
        progress.advance(total, _work(runs) - _work(missing))
        known = {r.id: r for path in self._elsewhere for r in read(path)}
        known |= {result.id: result for result in read(self._file)}
        for run in [run for run in missing if run.id in known]:
            same = known[run.id]
            if self._experiment.measure is None or same.extra:
                append(self._file, _elsewhere(same, run))
                progress.advance(total, run.work)
                missing.remove(run)
        self._collect(missing, pool, progress, total)

    def _collect(
        self, runs: Sequence[Run], pool: ProcessPoolExecutor, progress: Progress, total: TaskID
    ) -> None:
        command = " ".join(["python -m simulation", *sys.argv[1:]])
        waiting: dict[Future[Result], Run] = {
            pool.submit(
                execute, run, self._folders / run.id, self._machine, command,
                self._experiment.measure,
            ): run
            for run in runs
        }  # fmt: skip
        ended = progress.tasks[total].completed
        while waiting:
            done, _ = wait(waiting, _POLL, FIRST_COMPLETED)
            for future in done:
                run = waiting.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool as error:
                    raise FixBNError(
                        "a run's process was killed, perhaps for want of memory: start again with"
                        " fewer --workers; everything that had ended is kept"
                    ) from error
                append(self._file, result)
                ended += run.work
                progress.console.print(_line(run, result))
            under_way = sum(self._done_of(run) for run in waiting.values())
            progress.update(total, completed=ended + under_way)

    def _done_of(self, run: Run) -> float:
        """How much of its work a run has done by now."""
        try:
            rounds = (self._folders / run.id / "metrics.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0.0
        return run.work * min(rounds, run.rounds) / run.rounds


def _place(run: Run | Result) -> tuple[Any, ...]:
    return run.id, run.kind, run.grid, run.method, tuple(run.setting.items())


def _elsewhere(same: Result, run: Run) -> Result:
    return replace(same, kind=run.kind, grid=run.grid, method=run.method, setting=run.setting)


def _work(runs: Iterable[Run]) -> int:
    return sum(run.work for run in runs)


def _line(run: Run, result: Result) -> str:
    ended = not result.diverged and result.accuracy is not None
    outcome = f"{result.accuracy:.1%}" if ended else "diverged"
    return f"{run.label}: {outcome}, {result.seconds:.0f} s"


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # The speed of the last half hour: runs differ, and a window of seconds would jump.
    with Progress(*columns, console=Console(), speed_estimate_period=1800) as progress:
        yield progress
