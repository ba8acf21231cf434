"""The run config of a supervised run, checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fixbn_flwr.app.app_folder import AppFolder
from fixbn_flwr.app.config.rules import Value, problem
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.overrides import given_config, variant
from fixbn_flwr.app.runs.lock import is_locked
from fixbn_flwr.app.runs.reader import CHECKPOINTS, is_finished
from fixbn_flwr.app.server.resumed_run import ResumedRun
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.persistence.checkpoints import Checkpoints


def supervised_config(folder: Path, overrides: Sequence[str], app: Path | None) -> dict[str, Value]:
    """Return the keys that a user gives for a run, with their values.

    Args:
        folder: The run folder, absolute.
        overrides: The KEY=VALUE arguments.
        app: The directory of the user's own app. Default: none.

    Raises:
        ConfigError: If they are not valid, or a stopped run in the folder had other ones.
        CheckpointError: If a stopped run has no intact checkpoint.
    """
    given = given_config(overrides)
    for key in ("resume", "output-dir", "run-name"):
        if key in given:
            text = f"the supervised run's folder is {folder}; remove the key"
            raise ConfigError(problem(key, given[key], text))
    defaults = AppFolder(app).run_config if app else {}
    settings = Settings.from_run_config({**defaults, **given})
    if not settings.checkpoint_every:
        text = "a supervised run resumes from its checkpoints; use 1 or more"
        raise ConfigError(problem("checkpoint-every", settings.checkpoint_every, text))
    stopped = folder.exists() and not is_finished(folder) and not is_locked(folder)
    if stopped and Checkpoints(folder / CHECKPOINTS).rounds():
        ResumedRun.find(variant(settings, {"resume": str(folder)})).close()
    return given
