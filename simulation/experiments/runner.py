"""Run an experiment: several runs at a time, resuming after an interruption.

A completed run is a line in the experiment's results and is not repeated. Results of the same run
in another experiment at the same scale are copied. An interrupted run starts again from round 1.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fixbn_flwr.app.cli import CLIENT_MODULES
from fixbn_flwr.engine.fork_server import start_fork_server
from fixbn_flwr.errors import FixBNError
from simulation.experiments.experiment import Experiment
from simulation.experiments.gradient_runs import is_measured
from simulation.experiments.matching_results import (
    in_place_of,
    lines_of,
    same_config,
    search_of,
)
from simulation.experiments.planned_run import Run
from simulation.experiments.result_log import Result, append, read, results_file
from simulation.experiments.single_run import execute, log_of

FOLDERS = {"--data-dir", "--output", "--folders"}
_POLL = 2.0  # seconds between updates of the progress bar


class Runner:
    """Runs an experiment and records its results.

    Args:
        experiment: The experiment at one scale.
        results: The directory with the results of all experiments.
        folders: The directory for run folders.
        workers: The number of runs at a time.
        machine: The run config's keys that depend on the machine: data-dir and device.
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
        self._other_files = [
            path for path in sorted(results.glob(f"*/{experiment.scale}.jsonl"))
            if path != self._file
        ]  # fmt: skip
        self._folders = folders / experiment.name / experiment.scale
        self._workers = workers
        self._machine = machine

    def run(self) -> list[Result]:
        """Search for learning rates, run everything, and return all results of the experiment.

        Raises:
            FixBNError: If a run cannot start, or its process was killed. Completed runs are kept.
        """
        experiment = self._experiment
        with _progress() as progress, self._processes() as pool:
            total = progress.add_task(experiment.name)
            while missing := (search := search_of(experiment, read(self._file))).missing:
                ended = _work(search.tried)
                work = ended + _work([*missing, *experiment.outline()])
                progress.update(total, total=work, completed=ended)
                self._complete(missing, pool, progress, total)
            self._complete(experiment.results(search.rate), pool, progress, total)
        return read(self._file)

    @contextmanager
    def _processes(self) -> Iterator[ProcessPoolExecutor]:
        """Yield a pool of worker processes, which start on demand."""
        context = multiprocessing.get_context("spawn")
        threads = max(1, len(os.sched_getaffinity(0)) // self._workers)
        pool = ProcessPoolExecutor(self._workers, context, _start, (threads,))
        with pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise

    def _complete(
        self, runs: Sequence[Run], pool: ProcessPoolExecutor, progress: Progress, total: TaskID
    ) -> None:
        """Run those of the runs that have no result. Equal runs in several grids run once."""
        own = read(self._file)
        missing = [run for run in runs if not lines_of([run], own)]
        known = {line.id: line for path in self._other_files for line in read(path)}
        known |= {line.id: line for line in own}
        to_run: dict[str, list[Run]] = {}
        for run in missing:
            same = known.get(run.id)
            if same and same_config(run, same) and (same.extra or not self._measures(run)):
                append(self._file, in_place_of(run, same, with_extra=self._measures(run)))
            else:
                to_run.setdefault(run.id, []).append(run)
        later = _work(run for places in to_run.values() for run in places)
        progress.advance(total, _work(runs) - later)
        self._collect(list(to_run.values()), pool, progress, total)

    def _measures(self, run: Run) -> bool:
        return is_measured(run, self._experiment.measure)

    def _collect(
        self,
        runs: Sequence[list[Run]],
        pool: ProcessPoolExecutor,
        progress: Progress,
        total: TaskID,
    ) -> None:
        command = recorded_command(sys.argv[1:])
        waiting: dict[Future[Result], list[Run]] = {
            pool.submit(
                execute, places[0], self._folders / places[0].id, self._machine, command,
                self._experiment.measure,
            ): places
            for places in runs
        }  # fmt: skip
        ended = progress.tasks[total].completed
        while waiting:
            done, _ = wait(waiting, _POLL, FIRST_COMPLETED)
            failed: list[tuple[Run, BaseException]] = []
            for future in done:
                places = waiting.pop(future)
                if (error := future.exception()) is not None:
                    failed.append((places[0], error))
                    continue
                for run in places:
                    extra = self._measures(run)
                    append(self._file, in_place_of(run, future.result(), with_extra=extra))
                ended += _work(places)
                progress.console.print(_line(places[0], future.result()))
            for run, error in failed:  # after the completed runs are recorded
                if isinstance(error, BrokenProcessPool):
                    raise FixBNError(
                        "the process of a run was killed, possibly because memory ran out: start"
                        " again with fewer --workers. Completed runs are kept."
                    ) from error
                if isinstance(error, FixBNError):
                    raise FixBNError(
                        f"{run.label}: {error}\n  Its log is {log_of(self._folders / run.id)}."
                        " Fix the cause and start again. Completed runs are kept."
                    ) from error
                raise error
            running = sum(
                self._done_of(places) for future, places in waiting.items() if future.running()
            )
            progress.update(total, completed=ended + running)

    def _done_of(self, places: list[Run]) -> float:
        """Return how much of its work a run has done."""
        run = places[0]
        try:
            rounds = (self._folders / run.id / "metrics.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0.0
        return _work(places) * min(rounds, run.rounds) / run.rounds


def recorded_command(words: Sequence[str]) -> str:
    """Return the command for the record, without the folders of this machine.

    Example:
        >>> recorded_command(["run", "map", "--data-dir", "/mnt/data", "--workers", "2"])
        'python -m simulation.experiments run map --workers 2'
    """
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not {before, word.partition("=")[0]} & FOLDERS
    ]
    return " ".join(["python -m simulation.experiments", *kept])


def _start(threads: int) -> None:
    """Prepare a process that executes runs: its threads, and what its clients' processes import."""
    torch.set_num_threads(threads)
    start_fork_server(CLIENT_MODULES)


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
    # Estimate from the last half hour, because runs differ in speed.
    with Progress(*columns, console=Console(), speed_estimate_period=1800) as progress:
        yield progress
