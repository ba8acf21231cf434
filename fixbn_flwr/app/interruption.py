"""Say how to resume a run that was interrupted."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.reader import CHECKPOINTS, is_finished
from fixbn_flwr.persistence.checkpoints import Checkpoints


@contextmanager
def resume_hint(settings: Settings) -> Iterator[None]:
    """Print the command that resumes a run, if Ctrl-C ends it in the block after a checkpoint."""
    try:
        yield
    except KeyboardInterrupt:
        folder = settings.run_folder
        rounds = Checkpoints(folder / CHECKPOINTS).rounds()
        if rounds and not is_finished(folder):
            command = shlex.join(["fixbn", "run", f"resume={folder}"])
            with suppress(BrokenPipeError):  # nobody reads any more; the interruption counts
                print(
                    f"Stopped after round {rounds[-1]}. Resume it with: {command}", file=sys.stderr
                )
        raise
