"""Start a run on a SuperLink, and resume it from its newest checkpoint until it is finished.

All that it remembers is in the run folder. So it may be killed itself, with the whole machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from itertools import count
from pathlib import Path

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.flower_app import temporary_app
from fixbn_flwr.app.flower_commands import FlowerCommands, RunStatus
from fixbn_flwr.app.runs.lock import is_locked
from fixbn_flwr.app.runs.reader import CHECKPOINTS, is_finished, read_config
from fixbn_flwr.errors import FixBNError, SuperLinkError
from fixbn_flwr.persistence.checkpoints import Checkpoints

ATTEMPTS = 3  # failures in a row, without a new checkpoint, that end the supervision
UNKNOWN = "not found in the Flower configuration"  # Flower's words for a connection without address
_POLL = 2.0  # seconds between two looks at a SuperLink that is away, or at a run of another process


class Supervisor:
    """Supervises one run. It belongs on the SuperLink's machine, where the run folder is.

    Args:
        commands: Flower's commands for the SuperLink.
        app: The directory of the user's own app. Default: this package's app.
        run_config: The run's config, without `output-dir`, `run-name` and `resume`.
        folder: The run folder, absolute.
        say: Called with each line of the run's log, and with what the supervisor does.
    """

    def __init__(
        self,
        commands: FlowerCommands,
        app: Path | None,
        run_config: Mapping[str, Value],
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._commands = commands
        self._app = app
        self._run_config = run_config
        self._folder = folder
        self._say = say

    def supervise(self) -> None:
        """Return when the run is finished, or somebody has stopped it with `flwr stop`.

        Raises:
            SuperLinkError: If the connection to the SuperLink is not configured, or is a local
                simulation.
            FixBNError: If the run fails three times in a row without a new checkpoint, or its
                folder is not on this machine.
        """
        failures, checkpoint = 0, self._rounds_done()
        while not is_finished(self._folder):
            self._wait_for_superlink()
            self._wait_for_its_end()
            if is_finished(self._folder):
                break
            end = self._attempt()
            if end is None:
                self._say("The run was lost with its SuperLink")
            elif end.status == "finished:stopped":
                return self._say("Stopped with `flwr stop`. Supervise it again to resume it.")
            elif end.failure is None and not is_finished(self._folder):
                raise FixBNError(
                    f"Flower says that the run is completed, and {self._folder} does not: "
                    "supervise it on the SuperLink's machine, with an app that writes run folders."
                )
            elif end.failure:
                self._say(f"The run failed: {end.failure}")
                failures = 1 if self._rounds_done() > checkpoint else failures + 1
                checkpoint = self._rounds_done()
                if failures == ATTEMPTS:
                    raise FixBNError(
                        f"the run failed {ATTEMPTS} times without a new checkpoint, the last time "
                        f"with: {end.failure}\nFix the cause, and supervise it again: it resumes "
                        f"after round {checkpoint}."
                    )
        return self._say(f"Finished: {self._folder}")

    def _rounds_done(self) -> int:
        """Return the round of the newest checkpoint; 0 if there is none."""
        return max(Checkpoints(self._folder / CHECKPOINTS).rounds(), default=0)

    def _attempt(self) -> RunStatus | None:
        """Start or resume the run, and return how it ended; None if its SuperLink lost it."""
        config = self._config()
        try:
            with nullcontext(self._app) if self._app else temporary_app() as app:
                run_id = self._commands.run(app, config, {}, self._say)
        except SuperLinkError as error:
            return None if self._problem() else RunStatus("not started", str(error))
        while True:
            self._wait_for_superlink()
            try:
                run = self._commands.status(run_id)
            except SuperLinkError:  # it has lost its database, or is away again
                return None
            if run.status.startswith("finished"):
                return run
            if not self._wait_for_its_end():  # else only its log had ended
                with suppress(SuperLinkError):  # Flower takes a lost run for running for a while
                    self._commands.stop(run_id)
                return None

    def _config(self) -> dict[str, Value]:
        """Return the config to start the run with, or to resume it."""
        if done := self._rounds_done():
            self._say(f"Resuming after round {done}")
            return {**self._run_config, "resume": str(self._folder)}
        if self._folder.exists():
            self._set_aside()
        name = {"output-dir": str(self._folder.parent), "run-name": self._folder.name}
        return {**self._run_config, **name}

    def _set_aside(self) -> None:
        """Rename the folder of a run that ended before its first checkpoint."""
        read_config(self._folder)  # it is a run
        numbered = (self._folder.with_name(f"{self._folder.name}.{n}") for n in count(1))
        aside = next(path for path in numbered if not path.exists())
        self._folder.rename(aside)
        self._say(f"The run has no checkpoint and starts again; its old folder is {aside}")

    def _wait_for_its_end(self) -> bool:
        """Wait while another process, such as a server of Flower, runs the run; return if so."""
        waited = False
        while self._folder.exists() and is_locked(self._folder):
            if not waited:
                self._say(f"{self._folder} is being run; waiting for its end")
            waited = True
            time.sleep(_POLL)
        return waited

    def _wait_for_superlink(self) -> None:
        said = None
        while problem := self._problem():
            if UNKNOWN in problem:
                raise SuperLinkError(f"{problem} Name one that is there with --superlink.")
            if problem != said:
                self._say(f"The SuperLink does not answer; waiting for it ({problem})")
            said = problem
            time.sleep(_POLL)

    def _problem(self) -> str | None:
        """Return why the SuperLink does not answer; None if it does.

        Raises:
            SuperLinkError: If the connection is a simulation on this machine.
        """
        self._commands.refuse_simulation()  # Flower's default: any command would start it
        try:
            self._commands.check()
        except SuperLinkError as error:
            return str(error)
        return None
