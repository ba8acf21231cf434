"""Run a federation of the app with `flwr run`, on a private SuperLink and Ray."""

from __future__ import annotations

import os
import re
from collections import deque
from importlib.util import find_spec
from pathlib import Path

import torch

from fixbn_flwr.app.config.rules import Value
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.flower_app import temporary_app
from fixbn_flwr.app.local_superlink import SuperLink
from fixbn_flwr.app.routine_messages import is_routine
from fixbn_flwr.errors import ConfigError, FixBNError

_DEFAULTS = Settings().as_run_config()
_RECORD = re.compile(
    r"(\x1b\[36m\(ClientAppActor.*?\)\x1b\[0m )?"  # Ray's prefix of a client's line
    r"\x1b\[\d+m(?P<level>[A-Z]+) *\x1b\[0m: *(?P<text>.*)"
)


def run_with_ray(link: SuperLink, settings: Settings, clients: int, workers: int | None) -> Path:
    """Run a federation; return its run folder.

    Args:
        link: The SuperLink that runs it.
        settings: The run config.
        clients: The number of simulated clients.
        workers: The number of clients that train at a time. Default: one per core.

    Raises:
        FixBNError: If the run fails.
    """
    if find_spec("ray") is None:
        raise ConfigError(
            '--engine ray: Ray is not installed. Install it with `pip install "fixbn-flwr'
            '[app,simulation]"`, or leave out --engine.'
        )
    cores = workers or len(os.sched_getaffinity(0))
    federation: dict[str, Value] = {
        "num-supernodes": clients,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": cores,
    }
    if torch.cuda.is_available() and settings.device != "cpu":
        # Ray accepts a fraction of a GPU or whole GPUs, but not 1.5.
        federation["client-resources-num-gpus"] = min(1.0, torch.cuda.device_count() / cores)
    changed = {key: v for key, v in settings.as_run_config().items() if v != _DEFAULTS[key]}
    log = _Log()
    with temporary_app() as app:
        failure = link.run(app, changed, federation, log.show)
    if failure is not None:
        if not log.has_error(failure):
            print(*log.errors, sep="\n")  # not a FixBNError, whose message is enough
        raise FixBNError(f"the run failed: {failure}")
    return settings.run_folder


class _Log:
    """Prints the app's own lines and warnings of a run's log; keeps the errors."""

    def __init__(self) -> None:
        self.errors: deque[str] = deque(maxlen=60)
        self._in_error = False

    def has_error(self, message: str) -> bool:
        """Return whether the app logged an error with this message, and no traceback."""
        first = message.partition("\n")[0]
        records = map(_RECORD.match, self.errors)
        return any(record["text"] == first for record in records if record)

    def show(self, line: str) -> None:
        """Print a line, unless it is Flower's routine output or part of an error."""
        record = _RECORD.match(line)
        if record:
            self._in_error = record["level"] == "ERROR"
        if self._in_error:
            self.errors.append(line)
        elif not record or (record["level"] != "INFO" and not is_routine(record["text"])):
            print(line, flush=True)
