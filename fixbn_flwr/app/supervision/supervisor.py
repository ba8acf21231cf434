"""Start a run on a SuperLink, and resume it from its newest checkpoint until it is finished.

All that it remembers is in the run folder. So it may be killed itself, with the whole machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.flower_commands import FlowerCommands, RunStatus, SuperLinkError
from fixbn_flwr.app.runs.lock import is_locked
from fixbn_flwr.app.runs.reader import CHECKPOINTS, is_finished, read_config
from fixbn_flwr.errors import FixBNError
from fixbn_flwr.persistence.checkpoints import Checkpoints

ATTEMPTS = 3  # failures in a row, without a new checkpoint, that end the supervision
_POLL = 2.0  # seconds between two looks at a SuperLink that is away, or at a run of another process


class Supervisor:
    """Supervises one run. It belongs on the SuperLink's machine, where the run folder is.

    Args:
        commands: Flower's commands for the SuperLink.
        app: The directory of the app.
        run_config: The run's config, without `output-dir`, `run-name` and `resume`.
        folder: The run folder, absolute.
        say: Called with each line of the run's log, and with what the supervisor does.
    """

    def __init__(
        self,
        commands: FlowerCommands,
        app: Path,
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
            FixBNError: If it fails three times in a row without a new checkpoint.
        """
        failures, checkpoint = 0, self.rounds_done()
        while True:
            self._wait_for_its_end()
            if is_finished(self._folder):
                return self._say(f"Finished: {self._folder}")
            self._wait_for_superlink()
            end = self._attempt()
            if end is None:
                self._say("The run was lost with its SuperLink")
            elif end.status == "finished:stopped":
                return self._say("Stopped with `flwr stop`. Supervise it again to resume it.")
            elif end.failure:
                self._say(f"The run failed: {end.failure}")
                failures = 1 if self.rounds_done() > checkpoint else failures + 1
                checkpoint = self.rounds_done()
                if failures == ATTEMPTS:
                    raise FixBNError(
                        f"the run failed {ATTEMPTS} times without a new checkpoint, the last time "
                        f"with: {end.failure}\nFix the cause, and supervise it again: it resumes "
                        f"after round {checkpoint}."
                    )

    def rounds_done(self) -> int:
        """Return the round of the newest checkpoint; 0 if there is none."""
        return max(Checkpoints(self._folder / CHECKPOINTS).rounds(), default=0)

    def _attempt(self) -> RunStatus | None:
        """Start or resume the run, and return how it ended; None if its SuperLink lost it."""
        try:
            run_id = self._commands.run(self._app, self._config(), {}, self._say)
        except SuperLinkError as error:
            return RunStatus("not started", str(error)) if self._superlink_answers() else None
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
        if self.rounds_done():
            self._say(f"Resuming after round {self.rounds_done()}")
            return {**self._run_config, "resume": str(self._folder)}
        if self._folder.exists():
            self._set_aside()
        name = {"output-dir": str(self._folder.parent), "run-name": self._folder.name}
        return {**self._run_config, **name}

    def _set_aside(self) -> None:
        """Rename the folder of a run that ended before its first checkpoint."""
        read_config(self._folder)  # it is a run
        numbered = (self._folder.with_name(f"{self._folder.name}.{n}") for n in range(1, 1000))
        aside = next(path for path in numbered if not path.exists())
        self._folder.rename(aside)
        self._say(f"It has no checkpoint yet and starts again. Its folder is now {aside}")

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
        said = False
        while not self._superlink_answers():
            if not said:
                self._say("The SuperLink does not answer; waiting for it")
            said = True
            time.sleep(_POLL)

    def _superlink_answers(self) -> bool:
        try:
            self._commands.check()
        except SuperLinkError:
            return False
        return True
